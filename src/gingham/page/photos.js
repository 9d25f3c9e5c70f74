// A photograph -> a picture in the dataset's style, each step kept so that it can be shown: photos.py, for a browser.
// The functions have the names they have in photos.py, pictures.py and prediction.py, to be read side by side, and give the
// same bytes and the same words. `cv` is OpenCV.js; what Pillow and NumPy do over there is written out here.
var GinghamPhotos = (() => {
  'use strict';

  const WORKING_SIDE = 160; // as in photos.py, where the reasons are
  const LARGEST_PIXELS = 120_000_000;
  const NARROWER = 0.85;
  const FLOOR = 65;
  const KEPT_PIXELS = 16_000_000; // of a file that is no JPEG: 64 MB as RGBA, which a phone still has
  const STRIP = 256; // rows that are copied out of a decoded picture at a time, a multiple of 8

  // A picture is {width, height, channels, data}; with four channels `transparent` says whether the fourth counts.

  // Pictures in.

  async function open(blob) {
    const name = blob.name || 'this picture';
    const advice = 'allowed: what this browser shows, such as PNG, JPEG, WEBP, BMP and GIF; save it as one of these';
    if (!blob.size) throw new Error(`${name} is empty, 0 bytes; ${advice}`);
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob, { imageOrientation: 'from-image', premultiplyAlpha: 'none', colorSpaceConversion: 'none' });
    } catch (error) {
      throw new Error(`${name} cannot be read as a picture (${error.message}); ${advice}`);
    }
    try {
      const { width, height } = bitmap;
      if (width * height > LARGEST_PIXELS) {
        throw new Error(
          `${name} has ${width}x${height} pixels; allowed: ${LARGEST_PIXELS.toLocaleString('en')} in all; make it smaller, 1000 a side are plenty`,
        );
      }
      const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
      const jpeg = start[0] === 0xff && start[1] === 0xd8;
      return read(bitmap, factorOf(width, height, jpeg));
    } finally {
      bitmap.close();
    }
  }

  // How many pixels a side become one. Python has libjpeg decode a large JPEG at half, a quarter or an eighth of its size,
  // never below four times what the garment is looked for at; the mean of as many pixels is nearest to that. Anything else
  // Python takes whole; so does this, up to what a phone's memory holds.
  function factorOf(width, height, jpeg) {
    const spare = Math.min(width, height) / (4 * WORKING_SIDE);
    if (jpeg) return [8, 4, 2].find((factor) => factor <= spare) || 1;
    return [1, 2, 4, 8].find((factor) => (width * height) / factor ** 2 <= KEPT_PIXELS);
  }

  // In strips, as the canvas of a large picture would be as large, and is more than some browsers allow.
  function read(bitmap, factor) {
    const rows = Math.min(STRIP, bitmap.height);
    const canvas = typeof OffscreenCanvas === 'undefined' ? document.createElement('canvas') : new OffscreenCanvas(1, 1);
    [canvas.width, canvas.height] = [bitmap.width, rows];
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.globalCompositeOperation = 'copy';
    const [width, height] = [Math.ceil(bitmap.width / factor), Math.ceil(bitmap.height / factor)];
    const rgba = new Uint8ClampedArray(width * height * 4);
    let transparent = false;
    for (let top = 0; top < bitmap.height; top += rows) {
      context.drawImage(bitmap, 0, -top);
      const data = context.getImageData(0, 0, bitmap.width, Math.min(rows, bitmap.height - top)).data;
      const strip = { width: bitmap.width, height: data.length / bitmap.width / 4, channels: 4, data };
      strip.transparent = hasTransparency(data);
      transparent ||= strip.transparent;
      rgba.set((factor > 1 ? straight(reduce(premultiplied(strip), factor, factor)) : strip).data, (top / factor) * width * 4);
    }
    return { width, height, rgba, transparent };
  }

  function hasTransparency(data) {
    for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return true;
    return false;
  }

  // Pictures out: what gingham.predict makes of a photograph, `model` being what it asks a run for.

  function prepare(cv, photo, model) {
    const [channels, height, width] = model.input_shape;
    const grey = channels === 1;
    const image = { width: photo.width, height: photo.height, channels: 4, data: photo.rgba, transparent: photo.transparent };
    if (image.width === width && image.height === height && isGrey(image) === grey) {
      const small = onWhite(image);
      return prepared([planes(grey ? toGrey(small) : small)], [step('size', 'taken as it is', small)]);
    }
    if (grey && model.garments) return prepareGarment(cv, image, model.input_shape);
    return preparePlain(image, model.input_shape, model.background);
  }

  function preparePlain(photo, [channels, height, width], background) {
    let square = fitSquare(photo, Math.max(height, width));
    square = resize(channels === 1 ? toGrey(square) : square, width, height, BICUBIC);
    const note = `shrunk to ${width}x${height} in its own proportions, padded in the colour of its border`;
    const steps = [step('size', note, square)];
    let pixels = square.data;
    if (channels === 1 && typeof background === 'number') {
      let border = median(rim(square, 1, 0));
      if (Math.abs(border - background) > 96) {
        [pixels, border] = [pixels.map((value) => 255 - value), 255 - border];
        steps.push(step('tone', 'made negative: the training pictures have the other background', { ...square, data: pixels }));
      }
      if (background < 16) {
        const lifted = Float32Array.from(pixels, (value) => Math.max(value - border - 8, 0));
        const most = Math.max(lifted.reduce((one, other) => Math.max(one, other), 0), 32);
        pixels = Uint8Array.from(lifted, (value) => Math.fround(Math.fround(value / most) * 255)); // in float32, as NumPy
        steps.push(step('contrast', 'its background made black, what stands out of it light', { ...square, data: pixels }));
      }
    }
    return prepared([planes({ ...square, data: pixels })], steps);
  }

  function prepareGarment(cv, photo, shape) {
    const small = thumbnail(photo, WORKING_SIDE);
    const colour = onWhite(small);
    const { width: across, height: down } = colour;
    const steps = [step('photo', `looked at ${across}x${down} pixels`, colour)];
    const [found, note] = find(cv, small, colour);
    steps.push(step('garment', note, dimmed(colour, found)));

    const window = boundsOf(found, across);
    const [inside, { width, height }] = [cut({ width: across, channels: 1, data: found }, window).data, window];
    const masked = (tone) => ({ ...tone, data: tone.data.map((value, i) => value * inside[Math.floor(i / tone.channels)]) });
    steps.push(step('crop', `cropped to ${width}x${height} of ${across}x${down}`, masked(cut(colour, window))));

    const grey = cut(smoothGrey(cv, colour), window);
    const negative = isNegative(colour, found);
    const tone = negative ? grey : { ...grey, data: grey.data.map((value) => 255 - value) };
    const words = negative
      ? 'is a negative already, light on black: kept'
      : 'made negative, as the dataset is: dark cloth turns light';
    steps.push(step('tone', words, masked(tone)));

    const core = eroded(cv, inside, width, height);
    const cloth = core.includes(1) ? core : inside;
    const values = tone.data.filter((_, i) => cloth[i]);
    const [low, high] = [percentile(values, 0.5), percentile(values, 99.5)];
    const lifted = masked(stretch(tone, low, high));
    steps.push(step('contrast', `contrast stretched from ${round(low)}-${round(high)} to ${FLOOR}-255`, lifted));

    const side = shape.slice(1);
    const picture = centred(cv, lifted, side);
    steps.push(step('size', `longer side brought to ${Math.max(...side)} pixels, centred on black`, picture));
    const squeezed = centred(cv, scaled(cv, picture, round(side[1] * NARROWER), side[0], cv.INTER_AREA), side);
    const percent = round(NARROWER * 100);
    steps.push(step('narrower', `answered for at ${percent}% of its width too, as clothes lie wider than they hang`, squeezed));
    const framings = [picture, squeezed].map((framing) => Array(shape[0]).fill([...framing.data]).flat());
    return prepared(framings, steps);
  }

  function stretch(tone, low, high) {
    const share = (value) => Math.min(Math.max((value - low) / Math.max(high - low, 40), 0), 1);
    return { ...tone, data: tone.data.map((value) => Math.floor(FLOOR + share(value) * (255 - FLOOR))) };
  }

  function isGrey({ data }) {
    for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
    return true;
  }

  function onWhite(image) {
    if (!image.transparent) return image;
    const data = new Uint8ClampedArray(image.data.length).fill(255);
    for (let i = 0; i < data.length; i++) {
      const alpha = image.data[i | 3];
      if (i % 4 < 3) data[i] = byte255(image.data[i] * alpha + 255 * (255 - alpha));
    }
    return { ...image, data, transparent: false };
  }

  // Where the garment is, a 1 or a 0 a pixel, never all 0, and how it was found.
  function find(cv, image, colour) {
    const share = (mask) => mask.reduce((one, other) => one + other, 0) / mask.length;
    const percent = (mask) => `${round(share(mask) * 100)}%`;
    if (image.transparent) {
      const opaque = new Uint8Array(image.width * image.height).map((_, i) => (image.data[4 * i + 3] > 127 ? 1 : 0));
      if (share(opaque) > 0 && share(opaque) < 0.98) return [opaque, `cut out already: ${percent(opaque)} of the picture is not transparent`];
    }
    const ground = plainGround(cv, colour);
    const found = tidy(cv, { ...colour, data: grab(cv, colour).map((value, i) => value & ~ground[i]) });
    if (share(found) < 0.005) return [found.fill(1), 'no garment stands out from its background: the whole picture is taken'];
    return [found, `garment found: ${percent(found)} of the picture`];
  }

  function grab(cv, colour) {
    const { width, height, data } = colour;
    const edge = Math.max(1, round(0.03 * Math.min(height, width)));
    const labels = new Uint8Array(width * height).map((_, i) => {
      const [row, column] = [Math.floor(i / width), i % width];
      if (Math.min(row, column, height - 1 - row, width - 1 - column) < edge) return cv.GC_BGD;
      return ((row + 0.5) / height - 0.5) ** 2 + ((column + 0.5) / width - 0.5) ** 2 < 0.45 ** 2 ? cv.GC_PR_FGD : cv.GC_PR_BGD;
    });
    const plain = [0, 1, 2].every((channel) => deviation(data.filter((_, i) => i % 4 === channel)) < 1);
    if (!labels.includes(cv.GC_PR_FGD) || plain) return labels.fill(0);
    return withMats((mat) => {
      const [mask, bgr] = [mat(toMat(cv, { width, height, channels: 1, data: labels })), mat(new cv.Mat())];
      cv.cvtColor(mat(toMat(cv, colour)), bgr, cv.COLOR_RGBA2BGR);
      const models = [0, 1].map(() => mat(cv.Mat.zeros(1, 65, cv.CV_64F)));
      cv.setRNGSeed(0);
      cv.grabCut(bgr, mask, new cv.Rect(0, 0, 1, 1), ...models, 4, cv.GC_INIT_WITH_MASK);
      return Uint8Array.from(mask.data, (label) => (label === cv.GC_FGD || label === cv.GC_PR_FGD ? 1 : 0));
    });
  }

  function plainGround(cv, colour) {
    const around = rim(colour, 2, 0, 1, 2);
    const middle = [0, 1, 2].map((channel) => median(around.filter((_, i) => i % 3 === channel)));
    const distance = (data, i) => Math.max(...middle.map((value, channel) => Math.abs(data[i + channel] - value)));
    const spread = percentile(Float64Array.from({ length: around.length / 3 }, (_, i) => distance(around, 3 * i)), 90);
    const alike = new Uint8Array(colour.width * colour.height);
    if (spread > 10) return alike;
    alike.forEach((_, i) => (alike[i] = distance(colour.data, 4 * i) <= Math.max(12, 2 * spread) ? 1 : 0));
    const { pieces } = components(cv, { ...colour, data: alike }, 4);
    const edges = new Set(rim({ ...colour, channels: 1, data: pieces }, 1, 0));
    return alike.map((value, i) => (value && edges.has(pieces[i]) ? 1 : 0));
  }

  function tidy(cv, found) {
    const whole = withMats((mat) => {
      const [mask, ellipse] = [mat(toMat(cv, { ...found, channels: 1 })), mat(cv.getStructuringElement(cv.MORPH_ELLIPSE, new cv.Size(3, 3)))];
      for (const way of [cv.MORPH_OPEN, cv.MORPH_CLOSE]) cv.morphologyEx(mask, mask, way, ellipse);
      return Uint8Array.from(mask.data);
    });
    const { pieces, areas } = components(cv, { ...found, data: whole }, 8);
    areas[0] = 0; // what is not found
    const least = 0.1 * Math.max(...areas, 1);
    const kept = Uint8Array.from(pieces, (piece) => (areas[piece] >= least ? 1 : 0));
    const holes = components(cv, { ...found, data: kept.map((value) => 1 - value) }, 4);
    return kept.map((value, i) => (value || holes.areas[holes.pieces[i]] < 0.003 * kept.length ? 1 : 0));
  }

  function isNegative(colour, found) {
    const around = [];
    for (let i = 0; i < found.length; i++) {
      const pixel = colour.data.subarray(4 * i, 4 * i + 3);
      if (Math.max(...pixel) - Math.min(...pixel) > 24) return false;
      if (!found[i]) around.push(...pixel);
    }
    return around.length > 0 && percentile(Uint8Array.from(around), 90) <= 8;
  }

  function centred(cv, tone, [height, width]) {
    const scale = Math.min(height / tone.height, width / tone.width);
    const [rows, columns] = [tone.height, tone.width].map((side) => Math.max(1, round(side * scale)));
    const small = scaled(cv, tone, columns, rows, scale < 1 ? cv.INTER_AREA : cv.INTER_LINEAR);
    return pasted(small, { width, height, channels: 1, data: new Uint8Array(width * height) });
  }

  function dimmed(colour, found) {
    const data = colour.data.map((value, i) => (found[i >> 2] || i % 4 === 3 ? value : Math.floor(value * 0.2)));
    return { ...colour, data };
  }

  // pictures.py

  function fitSquare(image, size) {
    const flat = onWhite(image);
    const longer = Math.max(flat.width, flat.height);
    const [width, height] = [flat.width, flat.height].map((side) => Math.max(1, round((side * size) / longer)));
    const small = resize(flat, width, height, LANCZOS, 3);
    if (width === height) return small;
    const border = rim(small, 1, 0, 1, 2);
    const colour = [0, 1, 2].map((channel) => round(median(border.filter((_, i) => i % 3 === channel))));
    const data = Uint8Array.from({ length: size * size * 4 }, (_, i) => [...colour, 255][i % 4]);
    return pasted(small, { width: size, height: size, channels: 4, data });
  }

  // Pillow: its resampling of 8-bit pictures, in whole numbers.

  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  const LANCZOS = { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };
  const BICUBIC = {
    support: 2,
    at: (x) => {
      const far = Math.abs(x);
      if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
      return far < 2 ? (((far - 5) * far + 8) * far - 4) * -0.5 : 0;
    },
  };

  function thumbnail(image, side) {
    if (side >= image.width && side >= image.height) return image;
    const aspect = image.width / image.height;
    const nearest = (length, error) => {
      const [below, above] = [Math.floor(length), Math.ceil(length)];
      return Math.max(error(above) < error(below) ? above : below, 1);
    };
    const width = aspect <= 1 ? nearest(side * aspect, (n) => Math.abs(aspect - n / side)) : side;
    const height = aspect <= 1 ? side : nearest(side / aspect, (n) => (n === 0 ? 0 : Math.abs(aspect - side / n)));
    return resize(image, width, height, LANCZOS, 2);
  }

  function resize(image, width, height, filter, reducingGap) {
    if (image.width === width && image.height === height) return image;
    let part = premultiplied(image);
    let box = [part.width, part.height];
    const factors = [part.width / width, part.height / height].map((ratio) => (reducingGap && Math.floor(ratio / reducingGap)) || 1);
    if (Math.max(...factors) > 1) {
      box = box.map((length, axis) => Math.fround(length / factors[axis])); // float32 in Pillow
      part = reduce(part, ...factors);
    }
    const { channels } = part;
    const passes = [
      { needed: width !== part.width || box[0] !== width, run: () => along('width', width, box[0]) },
      { needed: height !== part.height || box[1] !== height, run: () => along('height', height, box[1]) },
    ];
    const along = (axis, size, length) => {
      const [outer, inner] = axis === 'width' ? [part.height, channels] : [1, part.width * channels];
      part = { ...part, [axis]: size, data: resample(part.data, outer, part[axis], inner, size, length, filter) };
    };
    // Pillow begins with the columns where they lose more than twice what the rows lose, since version 13.
    if (part.height > height && part.height - height > 2 * (part.width - width)) passes.reverse();
    for (const { needed, run } of passes) if (needed) run();
    return straight(part);
  }

  // Along the middle one of three axes, from `length` to `size`: the rows of a picture, or its columns.
  function resample(data, outer, length, inner, size, box, { support, at }) {
    const scale = box / size;
    const stretched = Math.max(scale, 1);
    const reach = support * stretched;
    const result = new Uint8ClampedArray(outer * size * inner);
    const sums = new Int32Array(inner);
    for (let x = 0; x < size; x++) {
      const center = (x + 0.5) * scale;
      const first = Math.max(Math.trunc(center - reach + 0.5), 0);
      const count = Math.min(Math.trunc(center + reach + 0.5), length) - first;
      const weights = Array.from({ length: count }, (_, k) => at((k + first - center + 0.5) / stretched));
      const total = weights.reduce((one, other) => one + other, 0);
      const whole = weights.map((weight) => Math.trunc((weight / total) * 2 ** 22 + (weight < 0 ? -0.5 : 0.5)));
      for (let line = 0; line < outer; line++) {
        sums.fill(2 ** 21);
        for (let k = 0; k < count; k++) {
          const from = (line * length + first + k) * inner;
          for (let i = 0; i < inner; i++) sums[i] += data[from + i] * whole[k];
        }
        for (let i = 0; i < inner; i++) result[(line * size + x) * inner + i] = sums[i] >> 22;
      }
    }
    return result;
  }

  // The mean of every `across` by `down` pixels, of fewer at the right and lower edges.
  function reduce(image, across, down) {
    const { channels, data } = image;
    const [width, height] = [Math.ceil(image.width / across), Math.ceil(image.height / down)];
    const result = new Uint8ClampedArray(width * height * channels);
    const sums = new Uint32Array(width * channels);
    for (let y = 0; y < height; y++) {
      const rows = Math.min(down, image.height - y * down);
      sums.fill(0);
      for (let row = 0; row < rows; row++) {
        let from = (y * down + row) * image.width * channels;
        for (let x = 0; x < image.width; x++) {
          const to = Math.floor(x / across) * channels;
          for (let i = 0; i < channels; i++) sums[to + i] += data[from++];
        }
      }
      for (let x = 0; x < width; x++) {
        const count = rows * Math.min(across, image.width - x * across);
        const multiplier = Math.trunc(Math.fround(2 ** 24 / count)); // 8 bits above those of the mean
        for (let i = x * channels; i < (x + 1) * channels; i++) {
          result[y * width * channels + i] = Math.floor(((sums[i] + (count >> 1)) * multiplier) / 2 ** 24);
        }
      }
    }
    return { ...image, width, height, data: result };
  }

  const byte255 = (value) => ((value + 128) + ((value + 128) >> 8)) >> 8; // divided by 255, rounded

  function premultiplied(image) {
    if (!image.transparent) return image;
    return { ...image, data: image.data.map((value, i) => (i % 4 === 3 ? value : byte255(value * image.data[i | 3]))) };
  }

  function straight(image) {
    if (!image.transparent) return image;
    const apart = (value, alpha) => (alpha === 0 ? value : Math.min(Math.floor((255 * value) / alpha), 255));
    return { ...image, data: image.data.map((value, i) => (i % 4 === 3 ? value : apart(value, image.data[i | 3]))) };
  }

  function toGrey(image) {
    const grey = (_, i) => (image.data[4 * i] * 19595 + image.data[4 * i + 1] * 38470 + image.data[4 * i + 2] * 7471 + 0x8000) >> 16;
    return { ...image, channels: 1, data: Uint8Array.from({ length: image.width * image.height }, grey) };
  }

  // NumPy and Python: of numbers, in float64.

  function percentile(values, percent) {
    const sorted = values.slice().sort();
    const place = (sorted.length - 1) * (percent / 100);
    const [below, above] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]];
    const share = place - Math.floor(place);
    return share < 0.5 ? below + (above - below) * share : above - (above - below) * (1 - share);
  }

  const median = (values) => percentile(values, 50);

  function deviation(values) {
    const mean = values.reduce((one, other) => one + other, 0) / values.length;
    return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
  }

  // A half goes to the even number.
  function round(value) {
    const below = Math.floor(value);
    if (value - below === 0.5) return below + (below & 1);
    return Math.round(value);
  }

  // Pictures: parts of them, and OpenCV's.

  // The outermost `depth` rows and columns, of these channels.
  function rim({ width, height, channels, data }, depth, ...chosen) {
    const places = (length) => [...Array(length).keys()];
    const ends = (length) => [...places(length).slice(0, depth), ...places(length).slice(-depth)];
    const pixels = [
      ...ends(height).flatMap((row) => places(width).map((column) => row * width + column)),
      ...ends(width).flatMap((column) => places(height).map((row) => row * width + column)),
    ];
    return data.constructor.from(pixels.flatMap((pixel) => chosen.map((channel) => data[pixel * channels + channel])));
  }

  function boundsOf(found, across) {
    let [top, left, bottom, right] = [Infinity, Infinity, 0, 0];
    found.forEach((value, i) => {
      if (!value) return;
      const [row, column] = [Math.floor(i / across), i % across];
      [top, left, bottom, right] = [Math.min(top, row), Math.min(left, column), Math.max(bottom, row), Math.max(right, column)];
    });
    return { left, top, width: right - left + 1, height: bottom - top + 1 };
  }

  function cut({ width: across, channels, data }, { left, top, width, height }) {
    const part = new data.constructor(width * height * channels);
    for (let row = 0; row < height; row++) {
      const from = ((top + row) * across + left) * channels;
      part.set(data.subarray(from, from + width * channels), row * width * channels);
    }
    return { width, height, channels, data: part };
  }

  function pasted(small, frame) {
    const [left, top] = [(frame.width - small.width) >> 1, (frame.height - small.height) >> 1];
    const length = small.width * frame.channels;
    for (let row = 0; row < small.height; row++) {
      frame.data.set(small.data.subarray(row * length, (row + 1) * length), ((top + row) * frame.width + left) * frame.channels);
    }
    return frame;
  }

  const planes = ({ channels, data }) =>
    channels === 1 ? data : [0, 1, 2].flatMap((channel) => [...data.filter((_, i) => i % 4 === channel)]);

  function prepared(framings, steps) {
    return { framings: Uint8Array.from(framings.flatMap((framing) => [...framing])), count: framings.length, steps };
  }

  function step(name, note, { width, height, channels, data }) {
    const rgba = Uint8ClampedArray.from({ length: width * height * 4 }, (_, i) => (i % 4 === 3 ? 255 : data[channels === 4 ? i : i >> 2]));
    return { name, note, width, height, rgba };
  }

  // OpenCV.js frees nothing by itself: what is handed to `mat` is freed when the work is done.
  function withMats(work) {
    const mats = [];
    try {
      return work((mat) => mats[mats.push(mat) - 1]);
    } finally {
      mats.forEach((mat) => mat.delete());
    }
  }

  function toMat(cv, { width, height, channels, data }) {
    const mat = new cv.Mat(height, width, channels === 1 ? cv.CV_8UC1 : cv.CV_8UC4);
    mat.data.set(data);
    return mat;
  }

  function smoothGrey(cv, colour) {
    return withMats((mat) => {
      const [rgb, grey] = [mat(new cv.Mat()), mat(new cv.Mat())];
      cv.cvtColor(mat(toMat(cv, colour)), rgb, cv.COLOR_RGBA2RGB);
      cv.medianBlur(rgb, rgb, 3);
      cv.cvtColor(rgb, grey, cv.COLOR_RGB2GRAY);
      return { ...colour, channels: 1, data: Uint8Array.from(grey.data) };
    });
  }

  function eroded(cv, data, width, height) {
    return withMats((mat) => {
      const mask = mat(toMat(cv, { width, height, channels: 1, data }));
      cv.erode(mask, mask, mat(cv.Mat.ones(3, 3, cv.CV_8U)));
      return Uint8Array.from(mask.data);
    });
  }

  function scaled(cv, tone, width, height, way) {
    return withMats((mat) => {
      const small = mat(new cv.Mat());
      cv.resize(mat(toMat(cv, tone)), small, new cv.Size(width, height), 0, 0, way);
      return { width, height, channels: 1, data: Uint8Array.from(small.data) };
    });
  }

  // Which piece each pixel belongs to, 0 being none, and how many pixels each has.
  function components(cv, { width, height, data }, connectivity) {
    return withMats((mat) => {
      const [pieces, stats, centres] = [0, 1, 2].map(() => mat(new cv.Mat()));
      const image = mat(toMat(cv, { width, height, channels: 1, data }));
      const count = cv.connectedComponentsWithStats(image, pieces, stats, centres, connectivity, cv.CV_32S);
      const areas = Array.from({ length: count }, (_, piece) => stats.intAt(piece, cv.CC_STAT_AREA));
      return { pieces: Int32Array.from(pieces.data32S), areas };
    });
  }

  return { open, prepare, resize, reduce, thumbnail, fitSquare, LANCZOS, BICUBIC };
})();
if (typeof module !== 'undefined') module.exports = GinghamPhotos;
