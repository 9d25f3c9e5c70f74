// The page: gets an image from the user, and shows the prediction of GinghamEngine and its explanation.
(() => {
  'use strict';

  const $ = (id) => document.getElementById(id);
  const model = JSON.parse($('metadata').textContent);
  const SHOWN = 10; // classes with a bar
  let lastRequest = 0; // a prediction is dropped if a newer one was requested
  let lastDrawing = 0; // the same for the occlusion map
  let url = null;

  const percent = (share) => (share > 0.99 && share < 1 ? '> 99 %' : `${Math.round(100 * share)} %`);
  const announce = (text) => { $('status').textContent = text; };

  function show(name) {
    for (const id of ['empty', 'working', 'error', 'prediction']) $(id).hidden = id !== name;
  }

  async function predict(blob, { isDrawing = false } = {}) {
    const request = ++lastRequest;
    if (!isDrawing) preview(blob);
    if (!isDrawing || $('prediction').hidden) {
      $('working-text').textContent = GinghamEngine.ready() ? 'Classifying' : 'Loading the model takes a few seconds';
      show('working');
    }
    try {
      const prediction = await GinghamEngine.predict(blob);
      if (request !== lastRequest) return;
      render(prediction);
      if (!isDrawing && $('preview').hidden) showPreview(prediction.steps[0].picture); // the browser cannot read HEIC
      if (!isDrawing) $('result').scrollIntoView({ block: 'nearest' }); // on a phone, it is below the image
      const explanation = await GinghamEngine.explain(prediction);
      if (request === lastRequest) renderExplanation(prediction, explanation);
    } catch (error) {
      if (request === lastRequest) showError(error.message);
    }
  }

  function showError(text) {
    $('error').textContent = text;
    $('explanation').hidden = true;
    show('error');
  }

  function preview(blob) {
    stopDrawing();
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(blob);
    showPreview(url);
  }

  function showPreview(source) {
    $('preview').src = source;
    $('preview').hidden = false;
    $('invitation').hidden = true;
  }

  function render(prediction) {
    const { label, threshold, unsure, novel, steps } = prediction;
    const confidence = percent(prediction.confidence);
    show('prediction');
    const doubt = novel ? 'Unlike anything it was trained on. Nearest class:' : unsure ? 'Not sure. Best guess:' : '';
    $('result').classList.toggle('unsure', Boolean(doubt));
    $('kicker').textContent = doubt || `Prediction, with ${confidence} confidence:`;
    $('verdict').textContent = label;
    $('meaning').textContent = describeConfidence(prediction);
    const top = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
    $('bars').replaceChildren(...top.map(([name, share]) => {
      const bar = make('div', { className: 'bar', ariaHidden: 'true' }, make('i'));
      requestAnimationFrame(() => { bar.firstChild.style.width = `${100 * share}%`; });
      const number = make('span', { className: 'number' }, percent(share));
      return make('li', {}, make('span', { className: 'name', title: name }, name), bar, number);
    }));
    if (threshold > 0 && threshold <= 1) {
      const line = make('i');
      const text = make('span', {}, `threshold ${percent(threshold)}`);
      line.style.left = text.style.left = `${100 * threshold}%`;
      $('bars').append(make('li', { className: 'mark', ariaHidden: 'true' }, line, text));
    }
    $('steps').replaceChildren(...steps.map((step, k) => make('li', {},
      make('div', { className: 'tile' }, makeImage(step.picture, `Image after step ${k + 1}: ${step.step}`)),
      make('p', {}, make('b', {}, step.step[0].toUpperCase() + step.step.slice(1)), make('br'), step.note))));
    $('evidence-for').textContent = `for ${label}`;
    $('occlusion-summary').textContent = '';
    $('like').replaceChildren();
    $('neighbours').hidden = false;
    $('neighbours-summary').textContent = 'Searching the training images';
    drawOcclusion(prediction, null);
    $('explanation').hidden = false;
    announce(doubt ? `${doubt} ${label}, ${confidence}.` : `${label}, with ${confidence} confidence.`);
  }

  function describeConfidence({ threshold, unsure, novel }) {
    const hint = model.garments ? ' Try one whole garment on a plain background.' : '';
    const difference = 'The network reacts to this image differently than to its training images.';
    if (novel) return `${difference} It may belong to none of the classes.${hint}`;
    if (threshold > 1) return 'This model is not sure of any image: no threshold keeps its errors low enough.';
    if (unsure) return `The top probability is below ${percent(threshold)}.${hint}`;
    const warning = model.garments ? ' It is less reliable on photos.' : '';
    return `The confidence was calibrated on validation images.${warning}`;
  }

  function renderExplanation(prediction, { moved, among, neighbours }) {
    drawOcclusion(prediction, moved);
    $('occlusion-summary').textContent = describeOcclusion(moved);
    $('neighbours').hidden = !neighbours.length;
    const same = neighbours.filter((neighbour) => neighbour.label === prediction.label).length;
    const share = `${same} of these ${neighbours.length} ${same === 1 ? 'is' : 'are'} labelled ${prediction.label}`;
    $('neighbours-summary').textContent = `From ${among.toLocaleString('en')} training images. ${share}.`;
    $('like').replaceChildren(...neighbours.map(({ picture, label }) => make('li', {},
      make('div', { className: 'tile' }, makeImage(picture, `Training image: ${label}`)), make('span', {}, label))));
  }

  // Blue marks evidence for the prediction, rust evidence against it; the largest value gets the strongest colour.
  async function drawOcclusion({ steps, label }, occlusionMap) {
    const canvas = $('occlusion');
    const context = canvas.getContext('2d');
    const drawing = ++lastDrawing;
    const image = new Image();
    image.src = steps.findLast((step) => step.step !== 'narrower').picture; // the input of the model
    await image.decode();
    if (drawing !== lastDrawing) return;
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute('aria-label', `Input of the model, with the parts that are evidence for ${label}`);
    if (!occlusionMap) return;
    const overlay = new OffscreenCanvas(occlusionMap[0].length, occlusionMap.length);
    const largest = Math.max(0.02, ...occlusionMap.flat().map(Math.abs));
    const toColour = (value) => [...(value > 0 ? [34, 103, 138] : [179, 70, 31]), 217 * Math.abs(value) / largest];
    const pixels = occlusionMap.flat().flatMap(toColour);
    overlay.getContext('2d').putImageData(new ImageData(new Uint8ClampedArray(pixels), occlusionMap[0].length), 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  }

  // Describe the occlusion map in words: which ninth of the image is the strongest evidence for the prediction.
  function describeOcclusion(occlusionMap) {
    const sums = Array(9).fill(0);
    occlusionMap.forEach((row, y) => row.forEach((value, x) => {
      sums[3 * Math.floor(3 * y / occlusionMap.length) + Math.floor(3 * x / row.length)] += Math.max(0, value);
    }));
    const largest = Math.max(...sums);
    if (largest * 9 < 0.05 * occlusionMap.length) return 'No single part has much influence on the prediction.';
    const names = ['top left', 'top', 'top right', 'left', 'centre', 'right', 'bottom left', 'bottom', 'bottom right'];
    return `The strongest evidence is at the ${names[sums.indexOf(largest)]}.`;
  }

  function make(tag, attributes = {}, ...children) {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  }

  function makeImage(source, alt) {
    const element = make('img', { src: source, alt });
    element.addEventListener('load', () => element.classList.toggle('pixels', element.naturalWidth <= 64));
    return element;
  }

  // Input: image files that are chosen, dropped or pasted, and photos.

  function predictFirst(files) {
    // Many systems do not know the type of a phone's photos.
    const images = [...files].filter((file) => /^image\/|\.(hei[cf]|hif|avif)$/i.test(file.type + file.name));
    $('note').textContent = `Only the first of ${images.length} images is classified. Add the others one at a time.`;
    $('note').hidden = images.length < 2;
    if (images.length) {
      predict(images[0]);
    } else if (files.length) {
      showError(`${files[0].name || 'This file'} is not an image. Choose an image file, such as a JPEG or PNG.`);
    }
  }

  for (const id of ['file', 'capture']) {
    $(id).addEventListener('change', (event) => {
      predictFirst(event.target.files);
      event.target.value = '';
    });
  }
  $('preview').addEventListener('error', () => {
    $('preview').hidden = true;
    $('invitation').hidden = false;
  });
  $('choose').addEventListener('click', () => $('file').click());
  document.addEventListener('paste', (event) => predictFirst(event.clipboardData.files));
  for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $('stage').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
      if (kind === 'drop') predictFirst(event.dataTransfer.files);
    });
  }

  let stream = null;
  $('open-camera').addEventListener('click', async () => {
    // On a phone, the camera app is better than a video in a page.
    if (matchMedia('(pointer: coarse)').matches || !navigator.mediaDevices?.getUserMedia) return $('capture').click();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch {
      return showError('The camera cannot be used: there is none, or access was not allowed. Choose a photo instead.');
    }
    $('video').srcObject = stream;
    $('camera').showModal();
  });
  $('take-photo').addEventListener('click', () => {
    const video = $('video');
    const canvas = make('canvas', { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext('2d').drawImage(video, 0, 0);
    canvas.toBlob((blob) => predict(blob));
    $('camera').close();
  });
  $('close-camera').addEventListener('click', () => $('camera').close());
  $('camera').addEventListener('close', () => stream?.getTracks().forEach((track) => track.stop()));

  // Drawing.

  const paper = $('paper');
  const ink = paper.getContext('2d', { willReadFrequently: true });
  const undoStack = []; // the drawing before each stroke
  let tool = 'shape';
  let shade = '#22303a';
  let stroke = null; // the points of the current stroke
  let pen = { x: 160, y: 160 };

  function startDrawing() {
    $('preview').hidden = $('invitation').hidden = true;
    $('sketch').hidden = $('drawing-tools').hidden = false;
    $('sources').hidden = true;
    $('stage').classList.add('sketching');
    $('note').hidden = true;
    if (undoStack.length) predictDrawing(); else clear();
    paper.focus();
  }

  function stopDrawing() {
    $('sketch').hidden = $('drawing-tools').hidden = true;
    $('sources').hidden = false;
    $('stage').classList.remove('sketching');
  }

  // An empty drawing has no prediction; a pending one is dropped.
  function clear() {
    wipe();
    lastRequest++;
    $('explanation').hidden = true;
    show('empty');
  }

  function wipe() {
    ink.fillStyle = '#fff';
    ink.fillRect(0, 0, paper.width, paper.height);
  }

  function saveForUndo() {
    undoStack.push(ink.getImageData(0, 0, paper.width, paper.height));
    if (undoStack.length > 40) undoStack.shift();
    $('undo').disabled = false;
  }

  function startStroke(point) {
    saveForUndo();
    stroke = [point];
  }

  function extendStroke(point) {
    stroke.push(point);
    ink.putImageData(undoStack.at(-1), 0, 0);
    drawStroke(false);
  }

  // A shape is an outline that is filled at the end of the stroke; the other tools draw lines.
  function drawStroke(ended) {
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

  function endStroke() {
    if (!stroke) return;
    ink.putImageData(undoStack.at(-1), 0, 0);
    drawStroke(true);
    stroke = null;
    predictDrawing();
  }

  function cancelStroke() {
    stroke = null;
    if (undoStack.length) ink.putImageData(undoStack.pop(), 0, 0);
    $('undo').disabled = !undoStack.length;
  }

  function predictDrawing() {
    paper.toBlob((blob) => predict(blob, { isDrawing: true }));
  }

  const toPoint = (event) => {
    const box = paper.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return { x: x * paper.width, y: y * paper.height };
  };
  paper.addEventListener('pointerdown', (event) => {
    if (stroke) endStroke();
    paper.setPointerCapture(event.pointerId);
    $('pen').hidden = true;
    startStroke(toPoint(event));
  });
  paper.addEventListener('pointermove', (event) => {
    if (stroke && paper.hasPointerCapture(event.pointerId)) extendStroke(toPoint(event));
  });
  paper.addEventListener('pointerup', endStroke);
  paper.addEventListener('pointercancel', () => stroke && cancelStroke());
  paper.addEventListener('keydown', (event) => {
    const step = event.shiftKey ? 30 : 10;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const [x, y] = moves[event.key] ?? [0, 0];
    if (x || y) {
      pen = { x: Math.min(316, Math.max(4, pen.x + x)), y: Math.min(316, Math.max(4, pen.y + y)) };
      if (stroke) extendStroke({ ...pen });
    } else if (event.key === ' ' || event.key === 'Enter') {
      if (stroke) endStroke(); else startStroke({ ...pen });
      announce(stroke ? 'Pen down' : 'Pen up');
    } else if (event.key === 'Escape' && stroke) {
      cancelStroke();
      announce('Line cancelled');
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
  $('finish').addEventListener('click', () => {
    stopDrawing();
    paper.toBlob((blob) => { if (undoStack.length) preview(blob); else $('invitation').hidden = false; });
    $('draw').focus();
  });
  $('undo').addEventListener('click', () => {
    cancelStroke();
    if (undoStack.length) predictDrawing(); else clear();
  });
  $('clear').addEventListener('click', () => { saveForUndo(); clear(); });

  // Loading takes seconds, so it starts before an image is chosen.
  if (GinghamEngine.local) setTimeout(() => GinghamEngine.start().catch(() => {}), 300);
})();
