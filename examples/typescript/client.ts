// Streams a sequence of noise through one session, step by step, and prints a line a step: its index and the outputs.
//
//     npm install && npm run build
//     npm start -- localhost:8500 MODEL [PROTO]
//
// PROTO is streamcell.proto, ../../proto/streamcell/v1/streamcell.proto if it is not given.

import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

interface TensorSpec {
  name: string;
  dtype: string;
  step_shape: string[];
}

interface StreamRequest {
  open?: { model: string };
  inputs?: Buffer[];
}

interface StreamResponse {
  opened?: { inputs: TensorSpec[]; outputs: TensorSpec[] };
  outputs: Buffer[];
  step_index: string;
}

interface StreamCell extends grpc.Client {
  Stream(): grpc.ClientDuplexStream<StreamRequest, StreamResponse>;
}

const [target = "localhost:8500", model = "GRU", proto] = process.argv.slice(2);
const STEPS = 10;

const file = proto ?? fileURLToPath(new URL("../../../proto/streamcell/v1/streamcell.proto", import.meta.url));
// Fields keep the names of the .proto; 64-bit numbers are texts, because a number of JavaScript has only 53 bits.
const definition = loader.loadSync(file, { keepCase: true, longs: String, defaults: true, oneofs: true });
const packages = grpc.loadPackageDefinition(definition) as any;
const client = new packages.streamcell.v1.StreamCell(target, grpc.credentials.createInsecure()) as StreamCell;

// Tensors travel as little-endian bytes in C order, as JavaScript's typed arrays have them on every common machine.
const floats = (bytes: Buffer) => Array.from(new Float32Array(Uint8Array.from(bytes).buffer));
const bytes = (values: number[]) => Buffer.from(Float32Array.from(values).buffer);

const call = client.Stream();
let sent = 0;

function send(input: TensorSpec): void {
  if (sent === STEPS) {
    call.end(); // closes the session after its last reply
    return;
  }
  sent += 1;
  const width = input.step_shape.map(Number).reduce((a, b) => a * b, 1);
  const values = Array.from({ length: width }, (_, at) => Math.sin(sent + at));
  call.write({ inputs: [bytes(values)] });
}

let input: TensorSpec | undefined;
call.on("data", (reply: StreamResponse) => {
  if (reply.opened) {
    [input] = reply.opened.inputs;
    if (reply.opened.inputs.length !== 1 || input.dtype !== "float32") {
      throw new Error(`this example sends one float32 input; ${model} takes ${reply.opened.inputs.map((each) => each.name)}`);
    }
  } else {
    console.log(reply.step_index, reply.outputs.flatMap(floats).map((value) => value.toFixed(6)).join(" "));
  }
  if (input) send(input);
});
call.on("error", (error: grpc.ServiceError) => {
  // The reason is in the trailing metadata, as a google.rpc.ErrorInfo: docs/errors.md.
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.write({ open: { model } });
