// The engine of the served page: sends images to the server that the page came from.
'use strict';

const GinghamEngine = {
  local: false,
  async start() {},
  ready: () => true,
  async predict(blob) {
    const form = new FormData();
    form.append('images', blob, blob.name || 'image');
    let response;
    try {
      response = await fetch('predict?explain=true', { method: 'POST', body: form });
    } catch {
      throw new Error('The server does not respond. Check that gingham serve is running, and try again.');
    }
    const result = await response.json();
    if (!response.ok) throw new Error(result.error);
    return result.predictions[0];
  },
  async explain(prediction) {
    return prediction.explanation;
  },
};
