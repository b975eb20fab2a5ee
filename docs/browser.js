// What `tlkit predict` does, in a browser: model.onnx, and pictures as the user has them, by onnxruntime-web.
//
//   import * as ort from "./ort.wasm.min.mjs";
//   import { open, predict } from "./browser.js";
//   const model = await open(ort, await (await fetch("model.onnx")).arrayBuffer());
//   const { label, probability } = await predict(ort, model, file);
//
// Pixels are those of tlkit up to rounding: the resampling is that of Pillow, in its fixed-point arithmetic.

const FILTERS = {  // support, and weight by distance
  box: [0.5, x => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, x => (x === 0 ? 1 : Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, x => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 2 ** 22;  // of Pillow's fixed-point weights
const ADVICE = "save it with 8 bits per channel, in gray or RGB, as JPEG or PNG";

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function cubic(x) {
  const t = Math.abs(x);
  return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

function rint(x) {  // to the even one of two that are as near, as NumPy does
  const low = Math.floor(x);
  return x - low < 0.5 || (x - low === 0.5 && low % 2 === 0) ? low : low + 1;
}

/** Open the bytes of a model.onnx; labels and preprocessing are in its metadata. */
export async function open(ort, graph) {
  const facts = metadata(new Uint8Array(graph));
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return { session, labels: JSON.parse(facts["tlkit.labels"]), preprocessing: JSON.parse(facts["tlkit.preprocessing"]) };
}

/** Label a picture: a Blob, such as a File that was dropped on the page. */
export async function predict(ort, model, blob) {
  const { size } = model.preprocessing;
  const images = new ort.Tensor("uint8", await pixels(blob, model.preprocessing), [1, size, size, 3]);
  const { probabilities } = await model.session.run({ images }, ["probabilities"]);
  const best = probabilities.data.reduce((found, each, index, all) => (each > all[found] ? index : found), 0);
  return { label: model.labels[best], probability: probabilities.data[best], probabilities: [...probabilities.data] };
}

/** The picture as the network sees it: size x size x 3 values, RGB. Throws for what would be decoded otherwise. */
export async function pixels(blob, preprocessing) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  check(bytes);
  const options = { colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";  // what lies under transparency does not count
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return cropped(data, width, height, preprocessing);
}

function cropped(data, width, height, { size, mean, crop_pct, crop_mode, interpolation }) {
  if (!(interpolation in FILTERS)) throw new Error(`there is no filter ${interpolation} here`);
  const whole = [width, height];
  const sides = { center: [Math.min(...whole), Math.min(...whole)], squash: whole, border: [Math.max(...whole), Math.max(...whole)] }[crop_mode];
  const crop = sides.map(side => Math.max(crop_pct * side, 1));
  const part = whole.map((side, axis) => Math.min(crop[axis], side));
  const [wide, high] = part.map((side, axis) => Math.max(1, rint((size * side) / crop[axis])));
  const [across, down] = whole.map((side, axis) => [(side - part[axis]) / 2, (side + part[axis]) / 2]);
  const rows = resample(data, 4, width, height, across, wide, interpolation, 1, width);
  const small = resample(rows, 3, height, wide, down, high, interpolation, wide, 1);
  const square = new Uint8Array(size * size * 3).map((_, index) => rint(255 * mean[index % 3]));
  const [left, top] = [Math.floor((size - wide) / 2), Math.floor((size - high) / 2)];
  for (let y = 0; y < high; y++) square.set(small.subarray(y * wide * 3, (y + 1) * wide * 3), ((top + y) * size + left) * 3);
  return square;
}

/** Resample one axis of `length` pixels, `step` apart, in each of `lines`, `next` apart; 3 of `channels` are kept. */
function resample(data, channels, length, lines, [start, end], wanted, interpolation, step, next) {
  const [reach, weight] = FILTERS[interpolation];
  const scale = (end - start) / wanted, stretch = Math.max(scale, 1);
  const result = new Uint8Array(wanted * lines * 3);
  const [outStep, outNext] = step === 1 ? [1, wanted] : [lines, 1];
  for (let to = 0; to < wanted; to++) {
    const center = start + (to + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const count = Math.min(length, Math.trunc(center + reach * stretch + 0.5)) - first;
    const exact = Array.from({ length: count }, (_, index) => weight((index + first - center + 0.5) / stretch));
    const sum = exact.reduce((total, each) => total + each, 0);
    const weights = exact.map(each => Math.sign(each) * Math.floor(Math.abs(each / sum) * BITS + 0.5));
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let total = BITS / 2;
        for (let k = 0; k < count; k++) total += weights[k] * data[((first + k) * step + line * next) * channels + channel];
        result[(to * outStep + line * outNext) * 3 + channel] = Math.min(255, Math.max(0, Math.floor(total / BITS)));
      }
    }
  }
  return result;
}

/** Throw for a file that browsers decode otherwise than tlkit, or that is damaged. */
function check(bytes) {
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (text(1, 4) === "PNG") {
    if (bytes[24] === 16) throw new Error(ADVICE);  // bits per channel
    if (text(bytes.length - 8, bytes.length - 4) !== "IEND") throw new Error("it is cut");
  } else if (bytes[0] === 0xff && bytes[1] === 0xd8) {
    if (components(bytes) === 4) throw new Error(ADVICE);  // CMYK
    if (bytes[bytes.length - 2] !== 0xff || bytes[bytes.length - 1] !== 0xd9) throw new Error("it is cut");
  } else if (text(0, 3) !== "GIF" && !(text(0, 4) === "RIFF" && text(8, 12) === "WEBP")) {
    throw new Error(ADVICE);
  }
}

function components(bytes) {
  for (let at = 2; at < bytes.length && bytes[at] === 0xff; at += 2 + (bytes[at + 2] << 8) + bytes[at + 3]) {
    const isFrame = bytes[at + 1] >= 0xc0 && bytes[at + 1] <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(bytes[at + 1]);
    if (isFrame) return bytes[at + 9];
  }
  return 0;
}

/** The metadata of an ONNX file, field 14 of its protocol buffer; onnxruntime-web does not give it. */
function metadata(bytes) {
  const facts = {};
  for (const [number, value] of fields(bytes)) {
    if (number === 14) {
      const pair = Object.fromEntries(fields(value));
      facts[new TextDecoder().decode(pair[1])] = new TextDecoder().decode(pair[2]);
    }
  }
  return facts;
}

function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0, factor = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * factor; factor *= 128; } while (byte & 128);
    return value;
  };
  while (at < bytes.length) {
    const key = varint(), kind = key & 7;
    const length = kind === 0 ? (varint(), 0) : kind === 1 ? 8 : kind === 5 ? 4 : varint();
    yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
    at += length;
  }
}
