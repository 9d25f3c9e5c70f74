// A photograph -> a picture in the dataset's style, each step kept so that it can be shown: inference/preprocess.py, for a browser.
// The functions are called as in inference/preprocess.py, data/decode.py and inference/predict.py, where the reasons are, and give the same bytes and
// the same words. `cv` is OpenCV.js; what Pillow and NumPy do over there is written out at the end.
var GinghamPhotos = (() => {
  'use strict';

  const WORKING_SIDE = 160;
  const LARGEST_PIXELS = 120_000_000;
  const NARROWER = 0.85;
  const FLOOR = 65;
  // What a phone has memory for, 100 MB; Python takes larger pictures whole too, and they come out slightly different.
  const KEPT_PIXELS = 25_000_000;
  const STRIP = 256; // rows copied out of a decoded picture at a time, a multiple of 8

  // A picture is {width, height, channels, data}, of 1 channel or of 4; of 4, `transparent` says whether the last one counts.

  async function open(blob) {
    const name = blob.name || 'this picture';
    const advice = 'allowed: what this browser shows, such as PNG, JPEG, WEBP, BMP and GIF; save it as one of these';
    if (!blob.size) throw new Error(`${name} is empty, 0 bytes; ${advice}`);
    const way = { imageOrientation: 'from-image', premultiplyAlpha: 'none', colorSpaceConversion: 'none' };
    const bitmap = await createImageBitmap(blob, way).catch((error) => {
      throw new Error(`${name} cannot be read as a picture (${error.message.replace(/\.$/, '')}); ${advice}`);
    });
    try {
      const { width, height } = bitmap;
      if (width * height > LARGEST_PIXELS) {
        const allowed = `allowed: ${LARGEST_PIXELS.toLocaleString('en')} in all; make it smaller, 1000 a side are plenty`;
        throw new Error(`${name} has ${width}x${height} pixels; ${allowed}`);
      }
      return read(bitmap, [1, 2, 4].find((factor) => width * height <= KEPT_PIXELS * factor ** 2));
    } finally {
      bitmap.close();
    }
  }

  // In strips: a canvas as large as a phone's photograph is more than some browsers allow.
  function read(bitmap, factor) {
    const rows = Math.min(STRIP, bitmap.height);
    const canvas = typeof OffscreenCanvas === 'undefined' ? document.createElement('canvas') : new OffscreenCanvas(1, 1);
    [canvas.width, canvas.height] = [bitmap.width, rows];
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.globalCompositeOperation = 'copy';
    const [width, height] = [Math.ceil(bitmap.width / factor), Math.ceil(bitmap.height / factor)];
    const photo = { width, height, rgba: new Uint8ClampedArray(width * height * 4), transparent: false };
    for (let top = 0; top < bitmap.height; top += rows) {
      context.drawImage(bitmap, 0, -top);
      const { data } = context.getImageData(0, 0, bitmap.width, Math.min(rows, bitmap.height - top));
      const strip = { width: bitmap.width, height: data.length / bitmap.width / 4, channels: 4, data };
      for (let i = 3; i < data.length && !strip.transparent; i += 4) strip.transparent = data[i] < 255;
      photo.transparent ||= Boolean(strip.transparent);
      const small = factor === 1 ? strip : straight(reduce(premultiplied(strip), factor, factor));
      photo.rgba.set(small.data, (top / factor) * width * 4);
    }
    return photo;
  }

  function prepare(cv, photo, model) {
    const [channels, height, width] = model.input_shape;
    const image = { width: photo.width, height: photo.height, channels: 4, data: photo.rgba, transparent: photo.transparent };
    const grey = channels === 1;
    if (image.width === width && image.height === height && isGrey(image) === grey) {
      const small = grey ? toGrey(onWhite(image)) : onWhite(image);
      return prepared([small], [step('size', 'taken as it is', small)]);
    }
    if (grey && model.garments) return prepareGarment(cv, image, height, width);
    return preparePlain(image, channels, height, width, model.background);
  }

  function preparePlain(photo, channels, height, width, background) {
    const square = fitSquare(photo, Math.max(height, width));
    let picture = resize(channels === 1 ? toGrey(square) : square, width, height, BICUBIC);
    const note = `shrunk to ${width}x${height} in its own proportions, padded in the colour of its border`;
    const steps = [step('size', note, picture)];
    if (channels === 1 && typeof background === 'number') {
      let border = median(rim(picture, 1));
      if (Math.abs(border - background) > 96) {
        [picture, border] = [mapped(picture, (value) => 255 - value), 255 - border];
        steps.push(step('tone', 'made negative: the training pictures have the other background', picture));
      }
      if (background < 16) {
        const lifted = (value) => Math.max(value - border - 8, 0);
        const most = Math.max(...Array.from(picture.data, lifted), 32);
        picture = mapped(picture, (value) => Math.floor(Math.fround(Math.fround(lifted(value) / most) * 255))); // float32
        steps.push(step('contrast', 'its background made black, what stands out of it light', picture));
      }
    }
    return prepared([picture], steps);
  }

  function prepareGarment(cv, photo, ...side) {
    const small = thumbnail(photo, WORKING_SIDE);
    const colour = onWhite(small);
    const steps = [step('photo', `looked at ${colour.width}x${colour.height} pixels`, colour)];
    const [found, note] = find(cv, small, colour);
    steps.push(step('garment', note, dimmed(colour, found)));

    const window = boundsOf(found);
    const inside = cut(found, window);
    const masked = (image) => mapped(image, (value, i) => value * inside.data[Math.floor(i / image.channels)]);
    const size = `cropped to ${window.width}x${window.height} of ${colour.width}x${colour.height}`;
    steps.push(step('crop', size, masked(cut(colour, window))));

    const smooth = through(cv, colour, (source, result) => {
      cv.medianBlur(source, result, 3);
      cv.cvtColor(result, result, cv.COLOR_RGBA2GRAY);
    });
    const grey = cut(smooth, window);
    const negative = isNegative(colour, found);
    const tone = negative ? grey : mapped(grey, (value) => 255 - value);
    const words = negative
      ? 'is a negative already, light on black: kept'
      : 'made negative, as the dataset is: dark cloth turns light';
    steps.push(step('tone', words, masked(tone)));

    const core = through(cv, inside, (source, result, keep) => cv.erode(source, result, keep(cv.Mat.ones(3, 3, cv.CV_8U))));
    const cloth = core.data.includes(1) ? core : inside;
    const values = tone.data.filter((_, i) => cloth.data[i]);
    const [low, high] = [percentile(values, 0.5), percentile(values, 99.5)];
    const lifted = masked(stretch(tone, low, high));
    steps.push(step('contrast', `contrast stretched from ${round(low)}-${round(high)} to ${FLOOR}-255`, lifted));

    const picture = centred(cv, lifted, side);
    steps.push(step('size', `longer side brought to ${Math.max(...side)} pixels, centred on black`, picture));
    const squeezed = centred(cv, scaled(cv, picture, round(side[1] * NARROWER), side[0], cv.INTER_AREA), side);
    const share = percent(NARROWER);
    steps.push(step('narrower', `answered for at ${share} of its width too, as clothes lie wider than they hang`, squeezed));
    return prepared([picture, squeezed], steps);
  }

  function stretch(tone, low, high) {
    const share = (value) => Math.min(Math.max((value - low) / Math.max(high - low, 40), 0), 1);
    return mapped(tone, (value) => Math.floor(FLOOR + share(value) * (255 - FLOOR)));
  }

  function isGrey({ data }) {
    for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
    return true;
  }

  function onWhite(image) {
    if (!image.transparent) return image;
    const laid = (value, alpha) => by255(value * alpha + 255 * (255 - alpha));
    return { ...mapped(image, (value, i) => (i % 4 === 3 ? 255 : laid(value, image.data[i | 3]))), transparent: false };
  }

  // A mask is a picture of zeros and ones.
  function find(cv, image, colour) {
    if (image.transparent) {
      const opaque = mask(image, (i) => image.data[4 * i + 3] > 127);
      const share = mean(opaque.data);
      if (share > 0 && share < 0.98) return [opaque, `cut out already: ${percent(share)} of the picture is not transparent`];
    }
    const [grabbed, ground] = [grab(cv, colour), plainGround(cv, colour)];
    const found = tidy(cv, mask(colour, (i) => grabbed.data[i] && !ground.data[i]));
    const share = mean(found.data);
    if (share >= 0.005) return [found, `garment found: ${percent(share)} of the picture`];
    return [mask(colour, () => true), 'no garment stands out from its background: the whole picture is taken'];
  }

  function grab(cv, colour) {
    const { width, height } = colour;
    const edge = Math.max(1, round(0.03 * Math.min(height, width)));
    const labels = mapped(mask(colour, () => false), (_, i) => {
      const [row, column] = [Math.floor(i / width), i % width];
      if (Math.min(row, column, height - 1 - row, width - 1 - column) < edge) return cv.GC_BGD;
      const middle = ((row + 0.5) / height - 0.5) ** 2 + ((column + 0.5) / width - 0.5) ** 2 < 0.45 ** 2;
      return middle ? cv.GC_PR_FGD : cv.GC_PR_BGD;
    });
    const deviations = [0, 1, 2].map((channel) => deviation(only(channel, colour.data)));
    if (!labels.data.includes(cv.GC_PR_FGD) || Math.max(...deviations) < 1) return mask(colour, () => false);
    const grabbed = through(cv, labels, (source, result, keep) => {
      const bgr = keep(toMat(cv, colour));
      cv.cvtColor(bgr, bgr, cv.COLOR_RGBA2BGR);
      const models = [0, 1].map(() => keep(cv.Mat.zeros(1, 65, cv.CV_64F)));
      cv.setRNGSeed(0);
      cv.grabCut(bgr, source, new cv.Rect(0, 0, 1, 1), ...models, 4, cv.GC_INIT_WITH_MASK);
      source.copyTo(result);
    });
    return mask(colour, (i) => grabbed.data[i] === cv.GC_FGD || grabbed.data[i] === cv.GC_PR_FGD);
  }

  function plainGround(cv, colour) {
    const around = rim(colour, 2);
    const middle = [0, 1, 2].map((channel) => median(only(channel, around)));
    const distance = (data, i) => Math.max(...middle.map((value, channel) => Math.abs(data[4 * i + channel] - value)));
    const spread = percentile(only(0, around).map((_, i) => distance(around, i)), 90);
    if (spread > 10) return mask(colour, () => false);
    const alike = mask(colour, (i) => distance(colour.data, i) <= Math.max(12, 2 * spread));
    const [pieces] = components(cv, alike, 4);
    const edges = new Set(rim(pieces, 1));
    return mask(colour, (i) => alike.data[i] && edges.has(pieces.data[i]));
  }

  function tidy(cv, found) {
    const whole = through(cv, found, (source, result, keep) => {
      const ellipse = keep(cv.getStructuringElement(cv.MORPH_ELLIPSE, new cv.Size(3, 3)));
      cv.morphologyEx(source, result, cv.MORPH_OPEN, ellipse);
      cv.morphologyEx(result, result, cv.MORPH_CLOSE, ellipse);
    });
    const [pieces, areas] = components(cv, whole, 8);
    areas[0] = 0; // what is not found
    const kept = mask(whole, (i) => areas[pieces.data[i]] >= 0.1 * Math.max(...areas, 1));
    const [holes, sizes] = components(cv, mapped(kept, (value) => 1 - value), 4);
    return mask(whole, (i) => kept.data[i] || sizes[holes.data[i]] < 0.003 * kept.data.length);
  }

  function isNegative(colour, found) {
    const pixels = Array.from(found.data, (_, i) => colour.data.subarray(4 * i, 4 * i + 3));
    const around = pixels.filter((_, i) => !found.data[i]).flatMap((pixel) => [...pixel]);
    const grey = pixels.every((pixel) => Math.max(...pixel) - Math.min(...pixel) <= 24);
    return grey && around.length > 0 && percentile(around, 90) <= 8;
  }

  function centred(cv, tone, [height, width]) {
    const scale = Math.min(height / tone.height, width / tone.width);
    const [rows, columns] = [tone.height, tone.width].map((side) => Math.max(1, round(side * scale)));
    const small = scaled(cv, tone, columns, rows, scale < 1 ? cv.INTER_AREA : cv.INTER_LINEAR);
    return pasted(small, { width, height, channels: 1, data: new Uint8Array(width * height) });
  }

  function dimmed(colour, found) {
    return mapped(colour, (value, i) => (found.data[i >> 2] ? value : Math.floor(value * 0.2)));
  }

  function fitSquare(image, size) {
    const flat = onWhite(image);
    const longer = Math.max(flat.width, flat.height);
    const [width, height] = [flat.width, flat.height].map((side) => Math.max(1, round((side * size) / longer)));
    const small = resize(flat, width, height, LANCZOS, 3);
    if (width === height) return small;
    const border = rim(small, 1);
    const colour = [0, 1, 2, 3].map((channel) => round(median(only(channel, border))));
    const data = Uint8ClampedArray.from({ length: size * size * 4 }, (_, i) => colour[i % 4]);
    return pasted(small, { width: size, height: size, channels: 4, data });
  }

  function prepared(images, steps) {
    const planes = ({ channels, data }) => (channels === 1 ? [...data] : [0, 1, 2].flatMap((channel) => only(channel, data)));
    return { framings: Uint8Array.from(images.flatMap(planes)), count: images.length, steps };
  }

  function step(name, note, { width, height, channels, data }) {
    const shown = (_, i) => (i % 4 === 3 ? 255 : data[channels === 4 ? i : i >> 2]);
    return { name, note, width, height, rgba: Uint8ClampedArray.from({ length: width * height * 4 }, shown) };
  }

  // OpenCV.js, which frees nothing by itself: a picture in, another one out; what `keep` is given is freed in the end.
  function through(cv, image, work) {
    const mats = [];
    const keep = (mat) => mats[mats.push(mat) - 1];
    try {
      const [source, result] = [keep(toMat(cv, image)), keep(new cv.Mat())];
      work(source, result, keep);
      const data = result.type() === cv.CV_32S ? Int32Array.from(result.data32S) : Uint8Array.from(result.data);
      return { width: result.cols, height: result.rows, channels: result.channels(), data };
    } finally {
      mats.forEach((mat) => mat.delete());
    }
  }

  function toMat(cv, { width, height, channels, data }) {
    const mat = new cv.Mat(height, width, channels === 1 ? cv.CV_8UC1 : cv.CV_8UC4);
    mat.data.set(data);
    return mat;
  }

  function scaled(cv, tone, width, height, way) {
    return through(cv, tone, (source, result) => cv.resize(source, result, new cv.Size(width, height), 0, 0, way));
  }

  // Which piece each pixel belongs to, 0 being none, and how many pixels each has.
  function components(cv, image, connectivity) {
    let areas;
    const pieces = through(cv, image, (source, result, keep) => {
      const [stats, centres] = [keep(new cv.Mat()), keep(new cv.Mat())];
      const count = cv.connectedComponentsWithStats(source, result, stats, centres, connectivity, cv.CV_32S);
      areas = Array.from({ length: count }, (_, piece) => stats.intAt(piece, cv.CC_STAT_AREA));
    });
    return [pieces, areas];
  }

  // NumPy and Python.

  const mapped = (image, change) => ({ ...image, data: image.data.map(change) });
  const only = (channel, data) => Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + channel]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const deviation = (values) => Math.sqrt(mean(values.map((value) => value ** 2)) - mean(values) ** 2);
  const median = (values) => percentile(values, 50);
  const round = (value) => Math.round(value) - (value % 2 === 0.5 ? 1 : 0); // a half goes to the even number
  const percent = (share) => `${round(share * 100)}%`;

  function mask({ width, height }, test) {
    return { width, height, channels: 1, data: Uint8Array.from({ length: width * height }, (_, i) => (test(i) ? 1 : 0)) };
  }

  function percentile(values, share) {
    const sorted = Float64Array.from(values).sort();
    const place = (sorted.length - 1) * (share / 100);
    const [below, above, part] = [sorted[Math.floor(place)], sorted[Math.ceil(place)], place - Math.floor(place)];
    return part < 0.5 ? below + (above - below) * part : above - (above - below) * (1 - part);
  }

  function boundsOf({ width, data }) {
    const places = [...data.keys()].filter((i) => data[i]);
    const columns = new Set(places.map((i) => i % width));
    const [left, top] = [Math.min(...columns), Math.floor(places[0] / width)];
    return { left, top, width: Math.max(...columns) - left + 1, height: Math.floor(places.at(-1) / width) - top + 1 };
  }

  function cut({ width: across, channels, data }, { left, top, width, height }) {
    const part = new data.constructor(width * height * channels);
    for (let row = 0; row < height; row++) {
      const from = ((top + row) * across + left) * channels;
      part.set(data.subarray(from, from + width * channels), row * width * channels);
    }
    return { width, height, channels, data: part };
  }

  // The outermost rows and columns, one after the other.
  function rim(image, depth) {
    const [width, height] = [Math.min(depth, image.width), Math.min(depth, image.height)];
    const strips = [
      { left: 0, top: 0, width: image.width, height },
      { left: 0, top: image.height - height, width: image.width, height },
      { left: 0, top: 0, width, height: image.height },
      { left: image.width - width, top: 0, width, height: image.height },
    ];
    return strips.flatMap((strip) => [...cut(image, strip).data]);
  }

  function pasted(small, frame) {
    const [left, top] = [(frame.width - small.width) >> 1, (frame.height - small.height) >> 1];
    const length = small.width * small.channels;
    for (let row = 0; row < small.height; row++) {
      const place = ((top + row) * frame.width + left) * frame.channels;
      frame.data.set(small.data.subarray(row * length, (row + 1) * length), place);
    }
    return frame;
  }

  // Pillow, whose pictures of 8 bits a channel are resampled in whole numbers.

  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  const LANCZOS = { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };
  const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0);
  const BICUBIC = { support: 2, at: (x) => cubic(Math.abs(x)) };
  const by255 = (value) => (value + 128 + ((value + 128) >> 8)) >> 8; // divided by 255, rounded

  function toGrey(image) {
    const [red, green, blue] = [0, 1, 2].map((channel) => only(channel, image.data));
    const data = Uint8Array.from(red, (value, i) => (value * 19595 + green[i] * 38470 + blue[i] * 7471 + 0x8000) >> 16);
    return { ...image, channels: 1, data };
  }

  function premultiplied(image) {
    if (!image.transparent) return image;
    return mapped(image, (value, i) => (i % 4 === 3 ? value : by255(value * image.data[i | 3])));
  }

  function straight(image) {
    if (!image.transparent) return image;
    const apart = (value, alpha) => (alpha === 0 ? value : Math.floor((255 * value) / alpha));
    return mapped(image, (value, i) => (i % 4 === 3 ? value : apart(value, image.data[i | 3])));
  }

  function thumbnail(image, side) {
    if (side >= image.width && side >= image.height) return image;
    const aspect = image.width / image.height;
    const nearest = (length, error) => {
      const [below, above] = [Math.floor(length), Math.ceil(length)];
      return Math.max(error(above) < error(below) ? above : below, 1);
    };
    const width = aspect > 1 ? side : nearest(side * aspect, (n) => Math.abs(aspect - n / side));
    const height = aspect > 1 ? nearest(side / aspect, (n) => (n === 0 ? 0 : Math.abs(aspect - side / n))) : side;
    return resize(image, width, height, LANCZOS, 2);
  }

  function resize(image, width, height, filter, reducingGap = Infinity) {
    if (image.width === width && image.height === height) return image;
    const [across, down] = [image.width / width, image.height / height].map((ratio) => Math.floor(ratio / reducingGap) || 1);
    let part = premultiplied(image);
    if (across > 1 || down > 1) part = reduce(part, across, down);
    const passes = [
      ['width', width, Math.fround(image.width / across)],
      ['height', height, Math.fround(image.height / down)],
    ];
    // Since version 13 Pillow begins with the columns where they lose more than twice what the rows lose.
    if (part.height > height && part.height - height > 2 * (part.width - width)) passes.reverse();
    for (const [axis, size, length] of passes) {
      if (size === part[axis] && size === length) continue;
      const [outer, inner] = axis === 'width' ? [part.height, part.channels] : [1, part.width * part.channels];
      part = { ...part, [axis]: size, data: resample(part.data, outer, part[axis], inner, size, length, filter) };
    }
    return straight(part);
  }

  // Along the middle one of three axes, which has `count` places, the first `length` of them to become `size`.
  function resample(data, outer, count, inner, size, length, { support, at }) {
    const result = new Uint8ClampedArray(outer * size * inner);
    const sums = new Int32Array(inner);
    const scale = length / size;
    const wide = Math.max(scale, 1);
    for (let x = 0; x < size; x++) {
      const centre = (x + 0.5) * scale;
      const first = Math.max(Math.trunc(centre - support * wide + 0.5), 0);
      const taps = Math.min(Math.trunc(centre + support * wide + 0.5), count) - first;
      const weights = Array.from({ length: taps }, (_, k) => at((k + first - centre + 0.5) / wide));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const whole = weights.map((weight) => Math.trunc((weight / total) * 2 ** 22 + (weight < 0 ? -0.5 : 0.5)));
      for (let line = 0; line < outer; line++) {
        sums.fill(2 ** 21);
        for (let k = 0; k < taps; k++) {
          const from = (line * count + first + k) * inner;
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
    let from = 0;
    for (let y = 0; y < height; y++) {
      const rows = Math.min(down, image.height - y * down);
      sums.fill(0);
      for (let row = 0; row < rows; row++) {
        for (let x = 0; x < image.width; x++) {
          const to = Math.floor(x / across) * channels;
          for (let i = 0; i < channels; i++) sums[to + i] += data[from++];
        }
      }
      sums.forEach((sum, i) => {
        const count = rows * Math.min(across, image.width - Math.floor(i / channels) * across);
        const inverse = Math.trunc(Math.fround(2 ** 24 / count)); // as Pillow divides
        result[y * width * channels + i] = Math.floor(((sum + (count >> 1)) * inverse) / 2 ** 24);
      });
    }
    return { ...image, width, height, data: result };
  }

  return { open, prepare, resize, thumbnail, LANCZOS, BICUBIC };
})();
if (typeof module !== 'undefined') module.exports = GinghamPhotos;
