// The page: pictures in by any way there is, the answer and its reasons out. What answers is GinghamEngine.
(() => {
  'use strict';

  const $ = (id) => document.getElementById(id);
  const model = JSON.parse($('metadata').textContent);
  const SHOWN = 10; // classes with a bar
  let asked = 0; // an answer that comes after a newer question is not shown
  let paintings = 0; // likewise of what moved it
  let url = null;

  const percent = (share) => (share > 0.99 && share < 1 ? '> 99 %' : `${Math.round(100 * share)} %`);
  const say = (text) => { $('status').textContent = text; };

  function show(name) {
    for (const id of ['empty', 'working', 'error', 'said']) $(id).hidden = id !== name;
  }

  async function ask(blob, { drawn = false } = {}) {
    const number = ++asked;
    if (!drawn) preview(blob);
    if (!drawn || $('said').hidden) {
      $('doing').textContent = GinghamEngine.ready() ? 'Looking' : 'Getting ready, which takes a few seconds once';
      show('working');
    }
    try {
      const entry = await GinghamEngine.answer(blob);
      if (number !== asked) return;
      render(entry);
      if (!drawn) $('answer').scrollIntoView({ block: 'nearest' }); // on a phone it lies below
      const why = await GinghamEngine.explain(entry);
      if (number === asked) explain(entry, why);
    } catch (error) {
      if (number === asked) refuse(error.message);
    }
  }

  function refuse(text) {
    $('error').textContent = text;
    $('why').hidden = true;
    show('error');
  }

  function preview(blob) {
    stopDrawing();
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(blob);
    $('shown').src = url;
    $('shown').hidden = false;
    $('invitation').hidden = true;
  }

  function render(entry) {
    show('said');
    $('answer').classList.toggle('unsure', entry.unsure);
    $('kicker').textContent = entry.unsure ? 'Not sure. Perhaps' : `${percent(entry.confidence)} sure:`;
    $('verdict').textContent = entry.label;
    $('meaning').textContent = entry.unsure
      ? `Below ${percent(model.threshold)} it does not commit itself.` + (model.garments ? ' One garment alone, whole, on a ground of another colour helps.' : '')
      : `Its confidence was calibrated on pictures held out from its training.${model.garments ? ' Photographs are harder.' : ''}`;
    const best = Object.entries(entry.probabilities).sort((one, other) => other[1] - one[1]).slice(0, SHOWN);
    $('bars').replaceChildren(...best.map(([name, share]) => {
      const bar = make('div', { className: 'bar', ariaHidden: 'true' }, make('i'));
      requestAnimationFrame(() => { bar.firstChild.style.width = `${100 * share}%`; });
      return make('li', {}, make('span', { className: 'name', title: name }, name), bar, make('span', { className: 'number' }, percent(share)));
    }));
    if (model.threshold) {
      const line = make('i');
      const text = make('span', {}, `sure from ${percent(model.threshold)}`);
      line.style.left = text.style.left = `${100 * model.threshold}%`;
      $('bars').append(make('li', { className: 'mark', ariaHidden: 'true' }, line, text));
    }
    $('steps').replaceChildren(...entry.steps.map((step, k) => make('li', {},
      make('div', { className: 'tile' }, image(step.picture, `After step ${k + 1}, ${step.step}`)),
      make('p', {}, make('b', {}, step.step[0].toUpperCase() + step.step.slice(1)), make('br'), step.note))));
    $('for').textContent = `speaks for ${entry.label}`;
    $('where').textContent = '';
    $('like').replaceChildren();
    $('likes').hidden = false;
    $('among').textContent = 'Looking through the training pictures';
    drawMoved(entry.steps.findLast((step) => step.step !== 'narrower').picture, null, entry.label);
    $('why').hidden = false;
    say(entry.unsure ? `Not sure. Perhaps ${entry.label}, ${percent(entry.confidence)}.` : `${entry.label}, ${percent(entry.confidence)} sure.`);
  }

  function explain(entry, why) {
    drawMoved(entry.steps.findLast((step) => step.step !== 'narrower').picture, why.moved, entry.label);
    $('where').textContent = where(why.moved);
    $('likes').hidden = !why.neighbours.length;
    const alike = why.neighbours.filter((one) => one.label === entry.label).length;
    $('among').textContent = `Of ${why.among.toLocaleString('en')} training pictures. ${alike} of these ${why.neighbours.length} ${alike === 1 ? 'is' : 'are'} ${entry.label}.`;
    $('like').replaceChildren(...why.neighbours.map((one) => make('li', {},
      make('div', { className: 'tile' }, image(one.picture, `Training picture: ${one.label}`)), make('span', {}, one.label))));
  }

  // Blue over what the answer rests on, rust over what speaks against it, as strong as the most of it.
  async function drawMoved(source, moved, label) {
    const canvas = $('moved');
    const pen = canvas.getContext('2d');
    const turn = ++paintings;
    const picture = new Image();
    picture.src = source;
    await picture.decode();
    if (turn !== paintings) return;
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute('aria-label', `The picture the network saw, marked where it speaks for ${label}`);
    if (!moved) return;
    const shade = new OffscreenCanvas(moved[0].length, moved.length);
    const most = Math.max(0.02, ...moved.flat().map(Math.abs));
    const pixels = moved.flat().flatMap((value) => [...(value > 0 ? [34, 103, 138] : [179, 70, 31]), 217 * Math.abs(value) / most]);
    shade.getContext('2d').putImageData(new ImageData(new Uint8ClampedArray(pixels), moved[0].length), 0, 0);
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(shade, 0, 0, canvas.width, canvas.height);
  }

  // The same in words: which ninth of the picture counts most.
  function where(moved) {
    const sums = Array(9).fill(0);
    moved.forEach((row, y) => row.forEach((value, x) => {
      sums[3 * Math.floor(3 * y / moved.length) + Math.floor(3 * x / row.length)] += Math.max(0, value);
    }));
    const most = Math.max(...sums);
    if (most * 9 < 0.05 * moved.length) return 'No single part decides: whatever is hidden, the answer stays.';
    const place = sums.indexOf(most);
    const names = ['upper left', 'top', 'upper right', 'left', 'middle', 'right', 'lower left', 'bottom', 'lower right'];
    return `Most of it rests on the ${names[place]}.`;
  }

  function make(tag, attributes = {}, ...children) {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  }

  function image(source, alt) {
    const element = make('img', { src: source, alt });
    element.addEventListener('load', () => element.classList.toggle('pixels', element.naturalWidth <= 64));
    return element;
  }

  // Pictures in: chosen, dropped, pasted, photographed.

  function take(files) {
    const pictures = [...files].filter((file) => file.type.startsWith('image/'));
    $('note').textContent = `This is the first of ${pictures.length} pictures; give the others one by one.`;
    $('note').hidden = pictures.length < 2;
    if (pictures.length) {
      ask(pictures[0]);
    } else if (files.length) {
      refuse(`${files[0].name || 'That'} is no picture; give a photograph, such as a JPEG or PNG file.`);
    }
  }

  for (const id of ['file', 'capture']) {
    $(id).addEventListener('change', (event) => {
      take(event.target.files);
      event.target.value = '';
    });
  }
  $('shown').addEventListener('error', () => {
    $('shown').hidden = true;
    $('invitation').hidden = false;
  });
  $('choose').addEventListener('click', () => $('file').click());
  document.addEventListener('paste', (event) => take(event.clipboardData.files));
  for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $('stage').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
      if (kind === 'drop') take(event.dataTransfer.files);
    });
  }

  let stream = null;
  $('photograph').addEventListener('click', async () => {
    // On a phone its own camera is better than a video in a page.
    if (matchMedia('(pointer: coarse)').matches || !navigator.mediaDevices?.getUserMedia) return $('capture').click();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch {
      return refuse('The camera cannot be used: there is none, or it was not allowed. Choose a picture in its place.');
    }
    $('video').srcObject = stream;
    $('camera').showModal();
  });
  $('shoot').addEventListener('click', () => {
    const video = $('video');
    const canvas = make('canvas', { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext('2d').drawImage(video, 0, 0);
    canvas.toBlob((blob) => ask(blob));
    $('camera').close();
  });
  $('shut').addEventListener('click', () => $('camera').close());
  $('camera').addEventListener('close', () => stream?.getTracks().forEach((track) => track.stop()));

  // Drawing.

  const paper = $('paper');
  const ink = paper.getContext('2d', { willReadFrequently: true });
  const done = []; // what the paper was before each stroke
  let tool = 'shape';
  let shade = '#22303a';
  let stroke = null; // the points of the stroke that is being drawn
  let pen = { x: 160, y: 160 };

  function startDrawing() {
    $('shown').hidden = $('invitation').hidden = true;
    $('sketch').hidden = $('pencils').hidden = false;
    $('sources').hidden = true;
    $('stage').classList.add('sketching');
    $('note').hidden = true;
    if (done.length) look(); else clear();
    paper.focus();
  }

  function stopDrawing() {
    $('sketch').hidden = $('pencils').hidden = true;
    $('sources').hidden = false;
    $('stage').classList.remove('sketching');
  }

  // An empty paper has no answer, and whatever is still being asked is no longer wanted.
  function clear() {
    wipe();
    asked++;
    $('why').hidden = true;
    show('empty');
  }

  function wipe() {
    ink.fillStyle = '#fff';
    ink.fillRect(0, 0, paper.width, paper.height);
  }

  function remember() {
    done.push(ink.getImageData(0, 0, paper.width, paper.height));
    if (done.length > 40) done.shift();
    $('undo').disabled = false;
  }

  function begin(point) {
    remember();
    stroke = [point];
  }

  function trace(point) {
    stroke.push(point);
    ink.putImageData(done.at(-1), 0, 0);
    paint(false);
  }

  // A shape is an outline while it is drawn, and filled at its end; the other tools are lines.
  function paint(ended) {
    ink.lineCap = ink.lineJoin = 'round';
    ink.strokeStyle = ink.fillStyle = tool === 'rubber' ? '#fff' : shade;
    ink.lineWidth = { shape: 4, brush: 14, rubber: 30 }[tool];
    ink.beginPath();
    stroke.forEach(({ x, y }, k) => (k ? ink.lineTo(x, y) : ink.moveTo(x, y)));
    if (stroke.length === 1) ink.lineTo(stroke[0].x + 0.1, stroke[0].y);
    if (tool === 'shape' && ended) {
      ink.closePath();
      ink.fill();
    }
    ink.stroke();
  }

  function end() {
    if (!stroke) return;
    ink.putImageData(done.at(-1), 0, 0);
    paint(true);
    stroke = null;
    look();
  }

  function cancel() {
    stroke = null;
    if (done.length) ink.putImageData(done.pop(), 0, 0);
    $('undo').disabled = !done.length;
  }

  function look() {
    paper.toBlob((blob) => ask(blob, { drawn: true }));
  }

  const at = (event) => {
    const box = paper.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width * paper.width, y: (event.clientY - box.top) / box.height * paper.height };
  };
  paper.addEventListener('pointerdown', (event) => {
    if (stroke) end();
    paper.setPointerCapture(event.pointerId);
    $('pen').hidden = true;
    begin(at(event));
  });
  paper.addEventListener('pointermove', (event) => stroke && paper.hasPointerCapture(event.pointerId) && trace(at(event)));
  paper.addEventListener('pointerup', end);
  paper.addEventListener('pointercancel', () => stroke && cancel());
  paper.addEventListener('keydown', (event) => {
    const step = event.shiftKey ? 30 : 10;
    const [x, y] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (x || y) {
      pen = { x: Math.min(316, Math.max(4, pen.x + x)), y: Math.min(316, Math.max(4, pen.y + y)) };
      if (stroke) trace({ ...pen });
    } else if (event.key === ' ' || event.key === 'Enter') {
      if (stroke) end(); else begin({ ...pen });
      say(stroke ? 'Pen down' : 'Pen up');
    } else if (event.key === 'Escape' && stroke) {
      cancel();
      say('Line taken back');
    } else {
      return;
    }
    event.preventDefault();
    Object.assign($('pen').style, { left: `${pen.x / 3.2}%`, top: `${pen.y / 3.2}%` });
    $('pen').classList.toggle('down', Boolean(stroke));
    $('pen').hidden = false;
  });

  for (const name of ['tool', 'shade']) {
    const buttons = [...document.querySelectorAll(`[data-${name}]`)];
    for (const button of buttons) {
      button.addEventListener('click', () => {
        if (name === 'tool') tool = button.dataset.tool; else shade = button.dataset.shade;
        for (const other of buttons) other.setAttribute('aria-pressed', String(other === button));
      });
    }
  }
  $('draw').addEventListener('click', startDrawing);
  $('leave').addEventListener('click', () => {
    stopDrawing();
    paper.toBlob((blob) => { if (done.length) preview(blob); else $('invitation').hidden = false; });
    $('draw').focus();
  });
  $('undo').addEventListener('click', () => {
    cancel();
    if (done.length) look(); else clear();
  });
  $('clear').addEventListener('click', () => {
    remember();
    clear();
  });

  // What takes seconds is begun before it is needed.
  if (GinghamEngine.local) setTimeout(() => GinghamEngine.start().catch(() => {}), 300);
})();
