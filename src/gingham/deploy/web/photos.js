// Prepares a photo like the images of the dataset, in a browser. The functions have the names of those in
// inference/preprocess.py, inference/garments.py, data/decode.py and inference/predict.py, which give the reasons, and
// return the same bytes and notes. `cv` is OpenCV.js; the functions of Pillow and NumPy are reimplemented at the end.
var GinghamPhotos = (() => {
  'use strict';

  const WORKING_SIDE = 160;
  const LARGEST_PIXELS = 120_000_000;
  const NARROW_WIDTH = 0.85;
  const MIN_DIFFERENCE = 5;
  const MIN_GARMENT_VALUE = 65;
  const OBJECT_SIDE = 224;
  const MIN_CONTRAST = 20;
  const NEARLY_EQUAL = 0.02;
  const OUTLINES = [0.5, 0.7];
  const THICKNESSES = [0, 0.03, 0.06];
  // 100 MB, which phones can hold. Larger images are reduced first, unlike in Python, so the results differ slightly.
  const MAX_FULL_PIXELS = 25_000_000;
  const STRIP = 256; // rows copied from a decoded image at a time, a multiple of 8

  // An image is {width, height, channels, data}, with 1 or 4 channels; `transparent` says whether alpha is used.

  async function openPhoto(blob) {
    const name = blob.name || 'this image';
    const advice = 'choose an image in a format that this browser supports, such as PNG, JPEG, WEBP, BMP, GIF or AVIF';
    if (!blob.size) throw new Error(`${name} is empty (0 bytes); ${advice}`);
    const options = { imageOrientation: 'from-image', premultiplyAlpha: 'none', colorSpaceConversion: 'none' };
    const bitmap = await createImageBitmap(blob, options).catch(async (error) => {
      if (/^ftyp(he|mif1|msf1)/.test(await blob.slice(4, 12).text())) {
        throw new Error(`${name} is a HEIC photo, which this browser cannot read; save it as a JPEG and choose that`);
      }
      throw new Error(`${name} cannot be read as an image (${error.message.replace(/\.$/, '')}); ${advice}`);
    });
    try {
      const { width, height } = bitmap;
      if (width * height > LARGEST_PIXELS) {
        const allowed = `allowed: ${LARGEST_PIXELS.toLocaleString('en')}; reduce its size, 1,000 a side are enough`;
        throw new Error(`${name} has ${width}x${height} pixels; ${allowed}`);
      }
      return readPixels(bitmap, [1, 2, 4].find((factor) => width * height <= MAX_FULL_PIXELS * factor ** 2));
    } finally {
      bitmap.close();
    }
  }

  // Read in strips, because some browsers do not allow a canvas as large as a phone's photo.
  function readPixels(bitmap, factor) {
    const rows = Math.min(STRIP, bitmap.height);
    const canvas = window.OffscreenCanvas ? new OffscreenCanvas(1, 1) : document.createElement('canvas');
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

  // Return all ways to prepare a photo for the model, at least one; `leastNovel` chooses among them.
  function preprocess(cv, photo, model) {
    const { input_shape: [channels, height, width], background, object_share: share } = model;
    const image = { ...photo, channels: 4, data: photo.rgba };
    const grey = channels === 1;
    const unchanged = [];
    if (image.width === width && image.height === height && isGrey(image) === grey) {
      const small = grey ? toGrey(onWhite(image)) : onWhite(image);
      const hasOtherBackground = () => Math.abs(median(borderPixels(small, 1)) - background) > 96;
      unchanged.push(preparedPhoto([small], [step('size', 'used unchanged', small)]));
      if (!grey || background === null || !hasOtherBackground()) return unchanged;
    } else if (grey && model.garments) {
      return [{ ...prepareGarment(cv, image, height, width), isPhoto: true }];
    }
    const plain = (inverted) => preparePlain(image, channels, height, width, background, inverted);
    if (!grey || background === null) return [plain(false)];
    return [...unchanged, plain(false), plain(true), ...prepareObject(cv, image, [height, width], background, share)];
  }

  // `novelty` has the scores of all framings, of which the candidates have equal numbers.
  function leastNovel(candidates, novelty) {
    const { count } = candidates[0];
    const scores = candidates.map((_, k) => mean(novelty.slice(k * count, (k + 1) * count)));
    const lowest = Math.min(...scores);
    const index = Math.max(0, scores.findIndex((score) => score < lowest + NEARLY_EQUAL));
    const { steps, ...best } = candidates[index];
    const note = `of ${candidates.length} preparations, the one most like the training images`;
    const choice = candidates.length > 1 ? [{ ...steps.at(-1), name: 'choice', note }] : [];
    return { ...best, steps: [...steps, ...choice], index, novelty: scores[index] };
  }

  function preparePlain(photo, channels, height, width, background, inverted) {
    const square = fitSquare(photo, Math.max(height, width));
    let image = resize(channels === 1 ? toGrey(square) : square, width, height, BICUBIC);
    const padding = photo.width === photo.height ? '' : ', padded with the colour of its border';
    const note = `scaled to fit ${width}x${height} pixels${padding}`;
    const steps = [step('size', note, image)];
    if (channels === 1 && background !== null) {
      if (inverted) {
        image = mapped(image, (value) => 255 - value);
        steps.push(step('tone', 'inverted', image));
      }
      if (background < 16) {
        const border = median(borderPixels(image, 1));
        const aboveBorder = (value) => Math.max(value - border - 8, 0);
        const largest = Math.max(...Array.from(image.data, aboveBorder), 32);
        const toShare = (value) => Math.fround(aboveBorder(value) / largest); // float32, as in Python
        image = mapped(image, (value) => Math.floor(Math.fround(toShare(value) * 255)));
        steps.push(step('contrast', 'background set to black, contrast stretched', image));
      }
    }
    return preparedPhoto([image], steps);
  }

  function prepareObject(cv, photo, size, background, share) {
    if (!share) return [];
    const small = onWhite(thumbnail(photo, OBJECT_SIDE));
    const grey = runOpenCv(cv, small, (source, result) => cv.cvtColor(source, result, cv.COLOR_RGBA2GRAY));
    const aperture = Math.max(3, Math.floor(Math.min(grey.height, grey.width) / 4) * 2 + 1);
    const ground = runOpenCv(cv, grey, (source, result) => cv.medianBlur(source, result, aperture)).data;
    const difference = (sign) => mapped(grey, (value, i) => Math.max(0, sign * (value - ground[i])));
    const [darker, lighter] = [difference(-1), difference(1)];
    const contrast = mean(lighter.data) > mean(darker.data) ? lighter : darker;
    const smooth = runOpenCv(cv, contrast, (source, result) => cv.blur(source, result, new cv.Size(3, 3)));
    const level = Math.max(...smooth.data);
    if (level < MIN_CONTRAST) return [];
    const length = round(share * Math.max(...size));
    const combinations = OUTLINES.flatMap((outline) =>
      THICKNESSES.flatMap((thickness) => [[outline, thickness, true], [outline, thickness, false]]));
    return combinations.map(([outline, thickness, byMass]) => {
      const mask = mainComponents(cv, mapped(contrast, (value) => (value > outline * level ? 1 : 0)));
      const near = dilated(cv, mask, cv.MORPH_RECT, 1).data;
      const tone = mapped(contrast, (value, i) => Math.min(Math.floor((value * 255) / level), 255) * near[i]);
      const box = boundsOf(mask);
      const radius = round(thickness * Math.max(box.width, box.height));
      const [thickTone, thickMask] = [tone, mask].map((image) => dilated(cv, image, cv.MORPH_ELLIPSE, radius, radius));
      const crop = boundsOf(thickMask);
      const framed = frame(cv, cut(thickTone, crop), size, length, byMass);
      const image = background < 128 ? framed : mapped(framed, (value) => 255 - value);
      const cropNote = `cropped to ${crop.width}x${crop.height} of ${small.width}x${small.height} pixels`;
      const sizeNote = `longer side scaled to ${length} pixels, centred by its ${byMass ? 'mass' : 'edges'}`;
      const thickened = thickness ? `, lines thickened by ${percent(2 * thickness)}` : '';
      return preparedPhoto([image], [step('object', cropNote, thickTone), step('size', sizeNote + thickened, image)]);
    });
  }

  function dilated(cv, image, shape, radius, margin = 0) {
    return runOpenCv(cv, image, (source, result, keep) => {
      const kernel = keep(cv.getStructuringElement(shape, new cv.Size(2 * radius + 1, 2 * radius + 1)));
      cv.copyMakeBorder(source, result, margin, margin, margin, margin, cv.BORDER_CONSTANT, new cv.Scalar());
      cv.dilate(result, result, kernel);
    });
  }

  function mainComponents(cv, mask) {
    const [components, areas, stats] = connectedComponents(cv, mask, 8);
    const atBorder = ([left, top, width, height]) =>
      left === 0 || top === 0 || left + width === mask.width || top + height === mask.height;
    const all = [...areas.keys()].slice(1); // component 0 is the background
    const inner = all.filter((k) => !atBorder(stats[k]));
    const candidates = inner.length ? inner : all;
    const least = 0.1 * Math.max(1, ...candidates.map((k) => areas[k]));
    const kept = new Set(candidates.filter((k) => areas[k] >= least));
    return makeMask(mask, (i) => kept.has(components.data[i]));
  }

  function frame(cv, tone, size, length, byMass) {
    const scale = Math.min(length / Math.max(tone.width, tone.height), size[0] / tone.height, size[1] / tone.width);
    const [rows, columns] = [tone.height, tone.width].map((side) => Math.max(1, round(side * scale)));
    const small = scaled(cv, tone, columns, rows, cv.INTER_AREA);
    const largest = Math.max(1, ...small.data);
    const bright = mapped(small, (value) => Math.floor((value * 255) / largest));
    const sumOf = (factor) => bright.data.reduce((sum, value, i) => sum + value * factor(i), 0);
    const total = Math.max(1, sumOf(() => 1));
    const corner = (side, full, positionOf) => {
      const middle = byMass ? sumOf(positionOf) / total + 0.5 : side / 2;
      return Math.min(Math.max(Math.floor(full / 2 - middle + 0.5), 0), full - side);
    };
    const top = corner(rows, size[0], (i) => Math.floor(i / columns));
    const left = corner(columns, size[1], (i) => i % columns);
    return pasted(bright, makeMask({ width: size[1], height: size[0] }, () => false), left, top);
  }

  function prepareGarment(cv, photo, ...size) {
    const small = thumbnail(photo, WORKING_SIDE);
    const colour = onWhite(small);
    const steps = [step('photo', `processed at ${colour.width}x${colour.height} pixels`, colour)];
    const [mask, note] = segmentGarment(cv, small, colour);
    steps.push(step('garment', note, dimBackground(colour, mask)));

    const crop = boundsOf(mask);
    const croppedMask = cut(mask, crop);
    const masked = (image) => mapped(image, (value, i) => value * croppedMask.data[Math.floor(i / image.channels)]);
    const cropNote = `cropped to ${crop.width}x${crop.height} of ${colour.width}x${colour.height} pixels`;
    steps.push(step('crop', cropNote, masked(cut(colour, crop))));

    const smooth = runOpenCv(cv, colour, (source, result) => {
      cv.medianBlur(source, result, 3);
      cv.cvtColor(result, result, cv.COLOR_RGBA2GRAY);
    });
    const grey = cut(smooth, crop);
    const negative = isNegative(colour, mask);
    const tone = negative ? grey : mapped(grey, (value) => 255 - value);
    const toneNote = negative
      ? 'not inverted: already light on black'
      : 'inverted: dark cloth becomes light, as in the dataset';
    steps.push(step('tone', toneNote, masked(tone)));

    const core = runOpenCv(cv, croppedMask, (source, result, keep) =>
      cv.erode(source, result, keep(cv.Mat.ones(3, 3, cv.CV_8U))));
    const cloth = core.data.includes(1) ? core : croppedMask;
    const values = tone.data.filter((_, i) => cloth.data[i]);
    const [low, high] = [percentile(values, 0.5), percentile(values, 99.5)];
    const stretched = masked(stretchContrast(tone, low, high));
    const contrastNote = `contrast stretched from ${round(low)}-${round(high)} to ${MIN_GARMENT_VALUE}-255`;
    steps.push(step('contrast', contrastNote, stretched));

    const image = fitCentred(cv, stretched, size);
    steps.push(step('size', `longer side scaled to ${Math.max(...size)} pixels, centred on black`, image));
    const narrow = fitCentred(cv, scaled(cv, image, round(size[1] * NARROW_WIDTH), size[0], cv.INTER_AREA), size);
    const narrowNote = `also classified at ${percent(NARROW_WIDTH)} of the width, because clothes lying flat are wider`;
    steps.push(step('narrower', narrowNote, narrow));
    return preparedPhoto([image, narrow], steps);
  }

  function stretchContrast(tone, low, high) {
    const share = (value) => Math.min(Math.max((value - low) / Math.max(high - low, 40), 0), 1);
    return mapped(tone, (value) => Math.floor(MIN_GARMENT_VALUE + share(value) * (255 - MIN_GARMENT_VALUE)));
  }

  function isGrey({ data }) {
    for (let i = 0; i < data.length; i += 4) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return false;
    return true;
  }

  function onWhite(image) {
    if (!image.transparent) return image;
    const blend = (value, alpha) => by255(value * alpha + 255 * (255 - alpha));
    const data = image.data.map((value, i) => (i % 4 === 3 ? 255 : blend(value, image.data[i | 3])));
    return { ...image, data, transparent: false };
  }

  // A mask is an image of zeros and ones.
  function segmentGarment(cv, image, colour) {
    if (image.transparent) {
      const opaque = makeMask(image, (i) => image.data[4 * i + 3] > 127);
      const share = mean(opaque.data);
      if (share > 0 && share < 0.98) return [opaque, `already cut out: ${percent(share)} of the photo is opaque`];
    }
    const [foreground, background] = [grabCut(cv, colour), plainBackground(cv, colour)];
    const mask = cleanMask(cv, makeMask(colour, (i) => foreground.data[i] && !background.data[i]));
    const share = mean(mask.data);
    if (share >= 0.005) return [mask, `garment found: ${percent(share)} of the photo`];
    return [makeMask(colour, () => true), 'no garment found: the whole photo is used'];
  }

  function grabCut(cv, colour) {
    const { width, height } = colour;
    const border = Math.max(1, round(0.03 * Math.min(height, width)));
    const labels = mapped(makeMask(colour, () => false), (_, i) => {
      const [row, column] = [Math.floor(i / width), i % width];
      if (Math.min(row, column, height - 1 - row, width - 1 - column) < border) return cv.GC_BGD;
      const squaredRadius = ((row + 0.5) / height - 0.5) ** 2 + ((column + 0.5) / width - 0.5) ** 2;
      return squaredRadius < 0.45 ** 2 ? cv.GC_PR_FGD : cv.GC_PR_BGD;
    });
    const deviations = [0, 1, 2].map((channel) => deviation(channelOf(channel, colour.data)));
    if (!labels.data.includes(cv.GC_PR_FGD) || Math.max(...deviations) < 1) return makeMask(colour, () => false);
    const labelled = runOpenCv(cv, labels, (source, result, keep) => {
      const bgr = keep(toMat(cv, colour));
      cv.cvtColor(bgr, bgr, cv.COLOR_RGBA2BGR);
      const models = [0, 1].map(() => keep(cv.Mat.zeros(1, 65, cv.CV_64F)));
      cv.setRNGSeed(0);
      cv.grabCut(bgr, source, new cv.Rect(0, 0, 1, 1), ...models, 4, cv.GC_INIT_WITH_MASK);
      source.copyTo(result);
    });
    return makeMask(colour, (i) => labelled.data[i] === cv.GC_FGD || labelled.data[i] === cv.GC_PR_FGD);
  }

  function plainBackground(cv, colour) {
    const border = borderPixels(colour, 2);
    const medians = [0, 1, 2].map((channel) => median(channelOf(channel, border)));
    const distance = (data, i) => Math.max(...medians.map((value, channel) => Math.abs(data[4 * i + channel] - value)));
    const spread = percentile(channelOf(0, border).map((_, i) => distance(border, i)), 90);
    if (spread > 10) return makeMask(colour, () => false);
    const similar = makeMask(colour, (i) => distance(colour.data, i) <= Math.max(MIN_DIFFERENCE, spread));
    const [components] = connectedComponents(cv, similar, 4);
    const atBorder = new Set(borderPixels(components, 1));
    return makeMask(colour, (i) => similar.data[i] && atBorder.has(components.data[i]));
  }

  function cleanMask(cv, mask) {
    const smooth = runOpenCv(cv, mask, (source, result, keep) => {
      const ellipse = keep(cv.getStructuringElement(cv.MORPH_ELLIPSE, new cv.Size(3, 3)));
      cv.morphologyEx(source, result, cv.MORPH_OPEN, ellipse);
      cv.morphologyEx(result, result, cv.MORPH_CLOSE, ellipse);
    });
    const [components, areas] = connectedComponents(cv, smooth, 8);
    areas[0] = 0; // the background
    const large = makeMask(smooth, (i) => areas[components.data[i]] >= 0.1 * Math.max(...areas, 1));
    const [holes, holeAreas] = connectedComponents(cv, mapped(large, (value) => 1 - value), 4);
    return makeMask(smooth, (i) => large.data[i] || holeAreas[holes.data[i]] < 0.003 * large.data.length);
  }

  function isNegative(colour, mask) {
    const pixels = Array.from(mask.data, (_, i) => colour.data.subarray(4 * i, 4 * i + 3));
    const background = pixels.filter((_, i) => !mask.data[i]).flatMap((pixel) => [...pixel]);
    const grey = pixels.every((pixel) => Math.max(...pixel) - Math.min(...pixel) <= 24);
    return grey && background.length > 0 && percentile(background, 90) <= 8;
  }

  function fitCentred(cv, tone, [height, width]) {
    const scale = Math.min(height / tone.height, width / tone.width);
    const [rows, columns] = [tone.height, tone.width].map((side) => Math.max(1, round(side * scale)));
    const small = scaled(cv, tone, columns, rows, scale < 1 ? cv.INTER_AREA : cv.INTER_LINEAR);
    return pasted(small, { width, height, channels: 1, data: new Uint8Array(width * height) });
  }

  function dimBackground(colour, mask) {
    return mapped(colour, (value, i) => (mask.data[i >> 2] ? value : Math.floor(value * 0.2)));
  }

  function fitSquare(image, size) {
    const flat = onWhite(image);
    const longer = Math.max(flat.width, flat.height);
    const [width, height] = [flat.width, flat.height].map((side) => Math.max(1, round((side * size) / longer)));
    const small = resize(flat, width, height, LANCZOS, 3);
    if (width === height) return small;
    const border = borderPixels(small, 1);
    const colour = [0, 1, 2, 3].map((channel) => round(median(channelOf(channel, border))));
    const data = Uint8ClampedArray.from({ length: size * size * 4 }, (_, i) => colour[i % 4]);
    return pasted(small, { width: size, height: size, channels: 4, data });
  }

  function preparedPhoto(images, steps) {
    const planes = ({ channels, data }) => (channels === 1 ? [...data] : [0, 1, 2].flatMap((c) => channelOf(c, data)));
    return { framings: Uint8Array.from(images.flatMap(planes)), count: images.length, steps };
  }

  function step(name, note, { width, height, channels, data }) {
    const pixel = (_, i) => (i % 4 === 3 ? 255 : data[channels === 4 ? i : i >> 2]);
    return { name, note, width, height, rgba: Uint8ClampedArray.from({ length: width * height * 4 }, pixel) };
  }

  // Run OpenCV.js on an image and return the result as an image; all matrices passed to `keep` are freed at the end.
  function runOpenCv(cv, image, work) {
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

  function scaled(cv, tone, width, height, interpolation) {
    return runOpenCv(cv, tone, (from, to) => cv.resize(from, to, new cv.Size(width, height), 0, 0, interpolation));
  }

  // Return the component of each pixel, 0 for the background, and each one's area and [left, top, width, height, area].
  function connectedComponents(cv, image, connectivity) {
    let rows;
    const components = runOpenCv(cv, image, (source, result, keep) => {
      const [stats, centres] = [keep(new cv.Mat()), keep(new cv.Mat())];
      const count = cv.connectedComponentsWithStats(source, result, stats, centres, connectivity, cv.CV_32S);
      rows = Array.from({ length: count }, (_, component) => stats.data32S.slice(5 * component, 5 * component + 5));
    });
    return [components, rows.map((row) => row[4]), rows];
  }

  // Functions of NumPy and Python.

  const mapped = (image, change) => ({ ...image, data: image.data.map(change) });
  const channelOf = (channel, data) => Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + channel]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const deviation = (values) => Math.sqrt(mean(values.map((value) => value ** 2)) - mean(values) ** 2);
  const median = (values) => percentile(values, 50);
  const round = (value) => Math.round(value) - (value % 2 === 0.5 ? 1 : 0); // rounds half to even
  const percent = (share) => `${round(share * 100)}%`;

  function makeMask({ width, height }, test) {
    const data = Uint8Array.from({ length: width * height }, (_, i) => (test(i) ? 1 : 0));
    return { width, height, channels: 1, data };
  }

  function percentile(values, share) {
    const sorted = Float64Array.from(values).sort();
    const position = (sorted.length - 1) * (share / 100);
    const [below, above] = [sorted[Math.floor(position)], sorted[Math.ceil(position)]];
    const part = position % 1;
    return part < 0.5 ? below + (above - below) * part : above - (above - below) * (1 - part);
  }

  function boundsOf({ width, data }) {
    const indices = [...data.keys()].filter((i) => data[i]);
    const columns = new Set(indices.map((i) => i % width));
    const [left, top] = [Math.min(...columns), Math.floor(indices[0] / width)];
    return { left, top, width: Math.max(...columns) - left + 1, height: Math.floor(indices.at(-1) / width) - top + 1 };
  }

  function cut({ width: across, channels, data }, { left, top, width, height }) {
    const part = new data.constructor(width * height * channels);
    for (let row = 0; row < height; row++) {
      const from = ((top + row) * across + left) * channels;
      part.set(data.subarray(from, from + width * channels), row * width * channels);
    }
    return { width, height, channels, data: part };
  }

  // Return the outermost rows and columns, one after the other.
  function borderPixels(image, depth) {
    const [width, height] = [Math.min(depth, image.width), Math.min(depth, image.height)];
    const strips = [
      { left: 0, top: 0, width: image.width, height },
      { left: 0, top: image.height - height, width: image.width, height },
      { left: 0, top: 0, width, height: image.height },
      { left: image.width - width, top: 0, width, height: image.height },
    ];
    return strips.flatMap((strip) => [...cut(image, strip).data]);
  }

  // Paste an image into a larger one, by default in its centre.
  function pasted(small, frame, left = (frame.width - small.width) >> 1, top = (frame.height - small.height) >> 1) {
    const length = small.width * small.channels;
    for (let row = 0; row < small.height; row++) {
      const offset = ((top + row) * frame.width + left) * frame.channels;
      frame.data.set(small.data.subarray(row * length, (row + 1) * length), offset);
    }
    return frame;
  }

  // Functions of Pillow, which resamples 8-bit images in integer arithmetic.

  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  const LANCZOS = { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };
  const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0);
  const BICUBIC = { support: 2, at: (x) => cubic(Math.abs(x)) };
  const by255 = (value) => (value + 128 + ((value + 128) >> 8)) >> 8; // value / 255, rounded

  function toGrey(image) {
    const [red, green, blue] = [0, 1, 2].map((channel) => channelOf(channel, image.data));
    const data = Uint8Array.from(red, (value, i) => (value * 19595 + green[i] * 38470 + blue[i] * 7471 + 0x8000) >> 16);
    return { ...image, channels: 1, data };
  }

  function premultiplied(image) {
    if (!image.transparent) return image;
    return mapped(image, (value, i) => (i % 4 === 3 ? value : by255(value * image.data[i | 3])));
  }

  function straight(image) {
    if (!image.transparent) return image;
    const unpremultiply = (value, alpha) => (alpha === 0 ? value : Math.floor((255 * value) / alpha));
    return mapped(image, (value, i) => (i % 4 === 3 ? value : unpremultiply(value, image.data[i | 3])));
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
    const [across, down] = [image.width / width, image.height / height].map((r) => Math.floor(r / reducingGap) || 1);
    let part = premultiplied(image);
    if (across > 1 || down > 1) part = reduce(part, across, down);
    const passes = [
      ['width', width, Math.fround(image.width / across)],
      ['height', height, Math.fround(image.height / down)],
    ];
    // Since version 13, Pillow resizes the height first if it shrinks by more than twice as much as the width.
    if (part.height > height && part.height - height > 2 * (part.width - width)) passes.reverse();
    for (const [axis, size, length] of passes) {
      if (size === part[axis] && size === length) continue;
      const [outer, inner] = axis === 'width' ? [part.height, part.channels] : [1, part.width * part.channels];
      part = { ...part, [axis]: size, data: resample(part.data, outer, part[axis], inner, size, length, filter) };
    }
    return straight(part);
  }

  // Resample the middle one of three axes, of size `count`: its first `length` values become `size` values.
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

  // Return the mean of every block of `across` by `down` pixels; blocks at the right and lower edges may be smaller.
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
        const inverse = Math.trunc(Math.fround(2 ** 24 / count)); // as in Pillow
        result[y * width * channels + i] = Math.floor(((sum + (count >> 1)) * inverse) / 2 ** 24);
      });
    }
    return { ...image, width, height, data: result };
  }

  return { openPhoto, preprocess, leastNovel, resize, thumbnail, LANCZOS, BICUBIC };
})();
if (typeof module !== 'undefined') module.exports = GinghamPhotos;
