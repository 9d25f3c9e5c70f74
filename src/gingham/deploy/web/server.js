// What the page asks where it is served: the server it came from.
'use strict';

const GinghamEngine = {
  local: false,
  async start() {},
  ready: () => true,
  async answer(blob) {
    const form = new FormData();
    form.append('images', blob, blob.name || 'picture');
    let response;
    try {
      response = await fetch('predict?explain=true', { method: 'POST', body: form });
    } catch {
      throw new Error('The server does not answer; see that gingham serve is running, and try again.');
    }
    const said = await response.json();
    if (!response.ok) throw new Error(said.error);
    return said.predictions[0];
  },
  async explain(entry) {
    return entry.explanation;
  },
};
