// Features of the graphs of a folder for the first of its `images.npy`, by onnxruntime-web in a default session.
//
// node int8_features.mjs MODULES COUNT FOLDER NAME
//
// Writes `<graph>.<NAME>.npy` for each `<graph>.onnx`; onnxruntime-web is installed in the folder MODULES.

import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [modules, count, folder, name] = process.argv.slice(2);
const ort = createRequire(path.join(path.resolve(modules), "any.js"))("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const content = fs.readFileSync(path.join(folder, "images.npy"));
const start = 10 + content.readUInt16LE(8);
const shape = content.toString("latin1", 10, start).match(/'shape': \(([^)]*)\)/)[1].split(",").map(Number);
const size = shape[1] * shape[2] * shape[3];

function npy(rows, width, values) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows}, ${width}), }`;
  const header = Buffer.from(text.padEnd(117) + "\n", "latin1");
  return Buffer.concat([Buffer.from([0x93, 78, 85, 77, 80, 89, 1, 0, header.length, 0]), header, ...values]);
}

for (const file of fs.readdirSync(folder).filter((each) => each.endsWith(".onnx"))) {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(path.join(folder, file))));
  const rows = Math.min(Number(count), shape[0]);
  const values = [];
  for (let row = 0; row < rows; row++) {
    const pixels = new Uint8Array(content.subarray(start + row * size, start + (row + 1) * size));
    const { features } = await session.run({ images: new ort.Tensor("uint8", pixels, [1, ...shape.slice(1)]) });
    values.push(Buffer.from(features.data.slice().buffer));
  }
  fs.writeFileSync(path.join(folder, `${path.parse(file).name}.${name}.npy`), npy(rows, values[0].length / 4, values));
  await session.release();
}
