// The page: takes an image in any way, and shows the prediction of GinghamEngine and its explanation.
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
      $('working-text').textContent = GinghamEngine.ready() ? 'Looking' : 'Getting ready, which takes a few seconds once';
      show('working');
    }
    try {
      const prediction = await GinghamEngine.predict(blob);
      if (request !== lastRequest) return;
      render(prediction);
      if (!isDrawing) $('result').scrollIntoView({ block: 'nearest' }); // it is below the image on a phone
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
    $('preview').src = url;
    $('preview').hidden = false;
    $('invitation').hidden = true;
  }

  function render(prediction) {
    show('prediction');
    $('result').classList.toggle('unsure', prediction.unsure);
    $('kicker').textContent = prediction.unsure ? 'Not sure. Perhaps' : `${percent(prediction.confidence)} sure:`;
    $('verdict').textContent = prediction.label;
    $('meaning').textContent = prediction.unsure
      ? `Below ${percent(model.threshold)} it does not commit itself.` + (model.garments ? ' One garment alone, whole, on a ground of another colour helps.' : '')
      : `Its confidence was calibrated on pictures held out from its training.${model.garments ? ' Photographs are harder.' : ''}`;
    const top = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
    $('bars').replaceChildren(...top.map(([name, share]) => {
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
    $('steps').replaceChildren(...prediction.steps.map((step, k) => make('li', {},
      make('div', { className: 'tile' }, makeImage(step.picture, `After step ${k + 1}, ${step.step}`)),
      make('p', {}, make('b', {}, step.step[0].toUpperCase() + step.step.slice(1)), make('br'), step.note))));
    $('evidence-for').textContent = `speaks for ${prediction.label}`;
    $('occlusion-summary').textContent = '';
    $('like').replaceChildren();
    $('neighbours').hidden = false;
    $('neighbours-summary').textContent = 'Looking through the training pictures';
    drawOcclusion(prediction.steps.findLast((step) => step.step !== 'narrower').picture, null, prediction.label);
    $('explanation').hidden = false;
    announce(prediction.unsure ? `Not sure. Perhaps ${prediction.label}, ${percent(prediction.confidence)}.` : `${prediction.label}, ${percent(prediction.confidence)} sure.`);
  }

  function renderExplanation(prediction, explanation) {
    drawOcclusion(prediction.steps.findLast((step) => step.step !== 'narrower').picture, explanation.moved, prediction.label);
    $('occlusion-summary').textContent = describeOcclusion(explanation.moved);
    $('neighbours').hidden = !explanation.neighbours.length;
    const sameLabel = explanation.neighbours.filter((neighbour) => neighbour.label === prediction.label).length;
    $('neighbours-summary').textContent = `Of ${explanation.among.toLocaleString('en')} training pictures. ${sameLabel} of these ${explanation.neighbours.length} ${sameLabel === 1 ? 'is' : 'are'} ${prediction.label}.`;
    $('like').replaceChildren(...explanation.neighbours.map((neighbour) => make('li', {},
      make('div', { className: 'tile' }, makeImage(neighbour.picture, `Training picture: ${neighbour.label}`)), make('span', {}, neighbour.label))));
  }

  // Blue marks evidence for the prediction, rust evidence against it; the largest value gets the strongest colour.
  async function drawOcclusion(source, occlusionMap, label) {
    const canvas = $('occlusion');
    const context = canvas.getContext('2d');
    const drawing = ++lastDrawing;
    const image = new Image();
    image.src = source;
    await image.decode();
    if (drawing !== lastDrawing) return;
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute('aria-label', `The picture the network saw, marked where it speaks for ${label}`);
    if (!occlusionMap) return;
    const overlay = new OffscreenCanvas(occlusionMap[0].length, occlusionMap.length);
    const largest = Math.max(0.02, ...occlusionMap.flat().map(Math.abs));
    const pixels = occlusionMap.flat().flatMap((value) => [...(value > 0 ? [34, 103, 138] : [179, 70, 31]), 217 * Math.abs(value) / largest]);
    overlay.getContext('2d').putImageData(new ImageData(new Uint8ClampedArray(pixels), occlusionMap[0].length), 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  }

  // Describe the occlusion map in words: which ninth of the image counts most.
  function describeOcclusion(occlusionMap) {
    const sums = Array(9).fill(0);
    occlusionMap.forEach((row, y) => row.forEach((value, x) => {
      sums[3 * Math.floor(3 * y / occlusionMap.length) + Math.floor(3 * x / row.length)] += Math.max(0, value);
    }));
    const largest = Math.max(...sums);
    if (largest * 9 < 0.05 * occlusionMap.length) return 'No single part decides: whatever is hidden, the answer stays.';
    const region = sums.indexOf(largest);
    const names = ['upper left', 'top', 'upper right', 'left', 'middle', 'right', 'lower left', 'bottom', 'lower right'];
    return `Most of it rests on the ${names[region]}.`;
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
    const images = [...files].filter((file) => file.type.startsWith('image/'));
    $('note').textContent = `This is the first of ${images.length} pictures; give the others one by one.`;
    $('note').hidden = images.length < 2;
    if (images.length) {
      predict(images[0]);
    } else if (files.length) {
      showError(`${files[0].name || 'That'} is no picture; give a photograph, such as a JPEG or PNG file.`);
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
      return showError('The camera cannot be used: there is none, or it was not allowed. Choose a picture in its place.');
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
    return { x: (event.clientX - box.left) / box.width * paper.width, y: (event.clientY - box.top) / box.height * paper.height };
  };
  paper.addEventListener('pointerdown', (event) => {
    if (stroke) endStroke();
    paper.setPointerCapture(event.pointerId);
    $('pen').hidden = true;
    startStroke(toPoint(event));
  });
  paper.addEventListener('pointermove', (event) => stroke && paper.hasPointerCapture(event.pointerId) && extendStroke(toPoint(event)));
  paper.addEventListener('pointerup', endStroke);
  paper.addEventListener('pointercancel', () => stroke && cancelStroke());
  paper.addEventListener('keydown', (event) => {
    const step = event.shiftKey ? 30 : 10;
    const [x, y] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (x || y) {
      pen = { x: Math.min(316, Math.max(4, pen.x + x)), y: Math.min(316, Math.max(4, pen.y + y)) };
      if (stroke) extendStroke({ ...pen });
    } else if (event.key === ' ' || event.key === 'Enter') {
      if (stroke) endStroke(); else startStroke({ ...pen });
      announce(stroke ? 'Pen down' : 'Pen up');
    } else if (event.key === 'Escape' && stroke) {
      cancelStroke();
      announce('Line taken back');
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
  $('clear').addEventListener('click', () => {
    saveForUndo();
    clear();
  });

  // Loading takes seconds, so it starts before the first image.
  if (GinghamEngine.local) setTimeout(() => GinghamEngine.start().catch(() => {}), 300);
})();
