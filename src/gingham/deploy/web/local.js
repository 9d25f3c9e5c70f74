// The engine of the offline page: runs the model in the page with ONNX Runtime, on images that photos.js prepares.
'use strict';

const GinghamEngine = (() => {
  const model = JSON.parse(document.getElementById('metadata').textContent);
  const [channels, height, width] = model.input_shape;
  const size = channels * height * width;
  let loading = null;
  let loaded = false;

  // Each payload is an element of the page with gzip in base64; it is emptied after reading to free memory.
  async function readPayload(name) {
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
      throw new Error('This browser is too old for this page. Use one from 2023 or later.');
    }
    const cv = await loadOpenCv(await readPayload('opencv.js'));
    const source = new Blob([await readPayload('ort.wasm.bundle.min.mjs')], { type: 'text/javascript' });
    const ort = await import(URL.createObjectURL(source));
    ort.env.wasm.numThreads = 1; // more threads need HTTP headers, which a file from disk does not have
    ort.env.wasm.wasmBinary = (await readPayload('ort-wasm-simd-threaded.wasm')).buffer;
    const graph = await readPayload('model.onnx');
    const session = await ort.InferenceSession.create(graph, { executionProviders: ['wasm'] });
    const [galleryImages, features] = [await readPayload('gallery'), await readPayload('features')];
    loaded = true;
    return { cv, ort, session, galleryImages, features: features && new Int8Array(features.buffer) };
  }

  // The script of OpenCV defines `cv`: the library, or a promise of it.
  async function loadOpenCv(bytes) {
    const url = URL.createObjectURL(new Blob([bytes], { type: 'text/javascript;charset=utf-8' }));
    await new Promise((done, failed) => {
      const element = document.createElement('script');
      element.src = url;
      element.onload = done;
      element.onerror = () => failed(new Error('OpenCV cannot start in this browser. Use one from 2023 or later.'));
      document.head.append(element);
    });
    URL.revokeObjectURL(url);
    const library = window.cv instanceof Promise ? await window.cv : window.cv;
    if (!library.Mat) await new Promise((done) => { library.onRuntimeInitialized = done; });
    return library;
  }

  function start() {
    return loading ??= load();
  }

  async function run(pixels, count) {
    const { ort, session } = await start();
    const images = new ort.Tensor('uint8', pixels, [count, channels, height, width]);
    const output = await session.run({ images });
    return Object.fromEntries(Object.entries(output).map(([name, { data }]) => [name, data]));
  }

  async function predict(blob) {
    const { cv } = await start();
    const candidates = GinghamPhotos.preprocess(cv, await GinghamPhotos.openPhoto(blob), model);
    const framings = Uint8Array.from(candidates.flatMap((candidate) => [...candidate.framings]));
    const scores = await run(framings, framings.length / size);
    const prepared = GinghamPhotos.leastNovel(candidates, [...scores.novelty]);
    const classes = model.classes.length;
    const probabilities = scores.probabilities.subarray(prepared.index * prepared.count * classes);
    const mean = model.classes.map((_, k) => {
      let sum = 0;
      for (let v = 0; v < prepared.count; v++) sum += probabilities[v * classes + k];
      return sum / prepared.count;
    });
    const top = mean.indexOf(Math.max(...mean));
    // The second threshold is null if no image is novel.
    const names = ['threshold', 'novelty_threshold'];
    const [threshold, limit] = names.map((name) => model[prepared.isPhoto ? `photo_${name}` : name]);
    return {
      image: blob.name || 'image',
      label: model.classes[top],
      confidence: mean[top],
      probabilities: Object.fromEntries(model.classes.map((name, k) => [name, mean[k]])),
      threshold,
      unsure: mean[top] < threshold,
      novel: limit !== null && prepared.novelty > limit,
      novelty: prepared.novelty,
      steps: prepared.steps.map(({ name, note, ...image }) => ({ step: name, note, picture: dataUrl(image) })),
      framing: prepared.framings.slice(0, size),
    };
  }

  // The same as occlusion() and Gallery.nearest() in the package gingham.inference.
  async function explain(prediction) {
    const { galleryImages, features } = await start();
    const label = model.classes.indexOf(prediction.label);
    const stride = Math.max(1, Math.floor(Math.max(height, width) / 14));
    const half = Math.floor(Math.max(5, 2 * stride + 1) / 2);
    const [rows, columns] = [Math.ceil(height / stride), Math.ceil(width / stride)];
    const original = await run(prediction.framing, 1);
    const occlusionMap = [];
    for (let row = 0; row < rows; row++) {
      const batch = new Uint8Array(columns * size);
      for (let column = 0; column < columns; column++) {
        batch.set(prediction.framing, column * size);
        hide(batch.subarray(column * size, (column + 1) * size), row * stride, column * stride, half);
      }
      const { probabilities } = await run(batch, columns);
      const dropAt = (k) => original.probabilities[label] - probabilities[k * model.classes.length + label];
      occlusionMap.push(Array.from({ length: columns }, (_, k) => dropAt(k)));
      await new Promise((done) => setTimeout(done)); // keeps the page responsive between rows
    }
    const neighbours = features ? nearest(original.features, features) : [];
    return {
      moved: occlusionMap,
      among: model.labels.length,
      neighbours: neighbours.map((k) => ({
        label: model.classes[model.labels[k]],
        picture: dataUrl({ rgba: toRgba(galleryImages.subarray(k * size, (k + 1) * size)), width, height }),
      })),
    };
  }

  function hide(image, row, column, half) {
    for (let c = 0; c < channels; c++) {
      for (let y = Math.max(0, row - half); y <= Math.min(height - 1, row + half); y++) {
        const start = (c * height + y) * width;
        image.fill(0, start + Math.max(0, column - half), start + Math.min(width - 1, column + half) + 1);
      }
    }
  }

  // Rows of `gallery` are int8 directions with different scales, so each dot product is divided by the row's norm.
  function nearest(query, gallery) {
    const count = gallery.length / query.length;
    const similarities = Array.from({ length: count }, (_, k) => {
      let product = 0;
      let length = 0;
      for (let d = 0; d < query.length; d++) {
        const value = gallery[k * query.length + d];
        product += value * query[d];
        length += value * value;
      }
      return [product / Math.sqrt(length || 1), k];
    });
    return similarities.sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 6).map((pair) => pair[1]);
  }

  function toRgba(image) {
    const area = height * width;
    const rgba = new Uint8ClampedArray(4 * area);
    for (let k = 0; k < area; k++) {
      for (let c = 0; c < 3; c++) rgba[4 * k + c] = image[(channels === 3 ? c * area : 0) + k];
      rgba[4 * k + 3] = 255;
    }
    return rgba;
  }

  function dataUrl({ rgba, width: across, height: down }) {
    const canvas = Object.assign(document.createElement('canvas'), { width: across, height: down });
    canvas.getContext('2d').putImageData(new ImageData(rgba, across, down), 0, 0);
    return canvas.toDataURL();
  }

  return { local: true, ready: () => loaded, start, predict, explain };
})();
