// What the page asks where it stands alone: the model inside it, through ONNX Runtime, on pictures that photos.js prepares.
'use strict';

const GinghamEngine = (() => {
  const model = JSON.parse(document.getElementById('metadata').textContent);
  const [channels, height, width] = model.input_shape;
  const size = channels * height * width;
  let loading = null;
  let loaded = false;

  // Each part stands in the page as gzip in base64, in an element of its own, which is emptied once it has been read.
  async function part(name) {
    const element = document.getElementById(`payload-${name}`);
    if (!element) return null;
    const text = atob(element.textContent.trim());
    element.textContent = '';
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function load() {
    if (typeof DecompressionStream === 'undefined' || typeof WebAssembly === 'undefined') {
      throw new Error('This browser is too old for the page; use one from 2023 or later.');
    }
    const cv = await openCv(await part('opencv.js'));
    const source = new Blob([await part('ort.wasm.bundle.min.mjs')], { type: 'text/javascript' });
    const ort = await import(URL.createObjectURL(source));
    ort.env.wasm.numThreads = 1; // more need headers that a file from disk cannot have
    ort.env.wasm.wasmBinary = (await part('ort-wasm-simd-threaded.wasm')).buffer;
    const session = await ort.InferenceSession.create(await part('model.onnx'), { executionProviders: ['wasm'] });
    const pictures = await part('gallery');
    const features = await part('features');
    loaded = true;
    return { cv, ort, session, pictures, features: features && new Int8Array(features.buffer) };
  }

  // OpenCV's file defines `cv`, a promise of the library or the library itself.
  async function openCv(bytes) {
    const url = URL.createObjectURL(new Blob([bytes], { type: 'text/javascript;charset=utf-8' }));
    await new Promise((done, failed) => {
      const element = document.createElement('script');
      element.src = url;
      element.onload = done;
      element.onerror = () => failed(new Error('OpenCV does not start in this browser; use one from 2023 or later.'));
      document.head.append(element);
    });
    URL.revokeObjectURL(url);
    const found = window.cv instanceof Promise ? await window.cv : window.cv;
    if (!found.Mat) await new Promise((done) => { found.onRuntimeInitialized = done; });
    return found;
  }

  function start() {
    loading ??= load();
    return loading;
  }

  async function run(pictures, count) {
    const { ort, session } = await start();
    const images = new ort.Tensor('uint8', pictures, [count, channels, height, width]);
    const out = await session.run({ images });
    return { probabilities: out.probabilities.data, features: out.features.data };
  }

  async function answer(blob) {
    const { cv } = await start();
    const prepared = GinghamPhotos.prepare(cv, await GinghamPhotos.open(blob), model);
    const { probabilities } = await run(prepared.framings, prepared.count);
    const classes = model.classes.length;
    const mean = model.classes.map((_, k) => {
      let sum = 0;
      for (let v = 0; v < prepared.count; v++) sum += probabilities[v * classes + k];
      return sum / prepared.count;
    });
    const top = mean.indexOf(Math.max(...mean));
    return {
      image: blob.name || 'picture',
      label: model.classes[top],
      confidence: mean[top],
      probabilities: Object.fromEntries(model.classes.map((name, k) => [name, mean[k]])),
      unsure: mean[top] < model.threshold,
      steps: prepared.steps.map((step) => ({ step: step.name, note: step.note, picture: dataUrl(step.rgba, step.width, step.height) })),
      picture: prepared.framings.slice(0, size),
    };
  }

  // As occlusion() and Gallery.like() in the package gingham.inference.
  async function explain(entry) {
    const { pictures, features } = await start();
    const label = model.classes.indexOf(entry.label);
    const stride = Math.max(1, Math.floor(Math.max(height, width) / 14));
    const half = Math.floor(Math.max(5, 2 * stride + 1) / 2);
    const rows = Math.ceil(height / stride);
    const columns = Math.ceil(width / stride);
    const whole = await run(entry.picture, 1);
    const moved = [];
    for (let row = 0; row < rows; row++) {
      const batch = new Uint8Array(columns * size);
      for (let column = 0; column < columns; column++) {
        batch.set(entry.picture, column * size);
        hide(batch.subarray(column * size, (column + 1) * size), row * stride, column * stride, half);
      }
      const { probabilities } = await run(batch, columns);
      const classes = model.classes.length;
      moved.push(Array.from({ length: columns }, (_, k) => whole.probabilities[label] - probabilities[k * classes + label]));
      await new Promise((done) => setTimeout(done)); // the page stays usable between rows
    }
    const places = features ? nearest(whole.features, features) : [];
    return {
      moved,
      among: model.labels.length,
      neighbours: places.map((k) => ({
        label: model.classes[model.labels[k]],
        picture: dataUrl(inColour(pictures.subarray(k * size, (k + 1) * size)), width, height),
      })),
    };
  }

  function hide(picture, row, column, half) {
    for (let c = 0; c < channels; c++) {
      for (let y = Math.max(0, row - half); y <= Math.min(height - 1, row + half); y++) {
        const left = Math.max(0, column - half);
        picture.fill(0, (c * height + y) * width + left, (c * height + y) * width + Math.min(width - 1, column + half) + 1);
      }
    }
  }

  // Rows of `base` are directions in bytes; the longer the row, the more it was scaled, so each is divided by its own length.
  function nearest(seen, base) {
    const count = base.length / seen.length;
    const likeness = Array.from({ length: count }, (_, k) => {
      let product = 0;
      let length = 0;
      for (let d = 0; d < seen.length; d++) {
        const value = base[k * seen.length + d];
        product += value * seen[d];
        length += value * value;
      }
      return [product / Math.sqrt(length || 1), k];
    });
    return likeness.sort((one, other) => other[0] - one[0] || one[1] - other[1]).slice(0, 6).map((pair) => pair[1]);
  }

  function inColour(picture) {
    const area = height * width;
    const rgba = new Uint8ClampedArray(4 * area);
    for (let k = 0; k < area; k++) {
      for (let c = 0; c < 3; c++) rgba[4 * k + c] = picture[(channels === 3 ? c * area : 0) + k];
      rgba[4 * k + 3] = 255;
    }
    return rgba;
  }

  function dataUrl(rgba, across, down) {
    const canvas = document.createElement('canvas');
    canvas.width = across;
    canvas.height = down;
    canvas.getContext('2d').putImageData(new ImageData(rgba, across, down), 0, 0);
    return canvas.toDataURL();
  }

  return { local: true, ready: () => loaded, start, answer, explain };
})();
