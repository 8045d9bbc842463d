// Streams sequences to a server of which it has neither .proto nor stubs: server reflection describes both services.
// Standard input: {"target", "model", "input", "sequences": [[[float, …] a step, …], …]}.
// Standard output: {"services", "native", "oip"}, the last two the outputs of each sequence, and "errors".

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import { GrpcReflection } from "grpc-js-reflection-client";

const job = JSON.parse(readFileSync(0, "utf8"));
const plain = grpc.ChannelCredentials.createInsecure();
const reflection = new GrpcReflection(job.target, plain);

async function service(name) {
  const descriptor = await reflection.getDescriptorBySymbol(name);
  const root = descriptor.getPackageObject({ keepCase: true, defaults: true, longs: String, oneofs: true });
  const Client = name.split(".").reduce((at, part) => at[part], root);
  return new Client(job.target, plain);
}

const bytes = (step) => Buffer.from(Float32Array.from(step).buffer);
const floats = (data) => Array.from(new Float32Array(Uint8Array.from(data).buffer));

// protobufjs reads a map out of a descriptor as what it is on the wire: a list of entries.
const map = (object) => Object.entries(object).map(([key, value]) => ({ key, value }));

// One call a session, one message a step, all sessions at once.
async function native(client) {
  const run = (steps) =>
    new Promise((resolve, reject) => {
      const outputs = [];
      const call = client.Stream();
      call.on("data", (reply) => outputs.push(...reply.outputs.map(floats)));
      call.on("error", reject);
      call.on("end", () => resolve(outputs));
      call.write({ open: { model: job.model } });
      for (const step of steps) call.write({ inputs: [bytes(step)] });
      call.end();
    });
  return Promise.all(job.sequences.map(run));
}

// One call for all sequences, their steps interleaved; replies come in the order of the requests.
async function oip(client) {
  const call = client.ModelStreamInfer();
  const outputs = job.sequences.map(() => []);
  const errors = [];
  const done = new Promise((resolve, reject) => {
    call.on("data", (reply) => {
      const { id, raw_output_contents: raw } = reply.infer_response;
      if (reply.error_message) errors.push(reply.error_message);
      else outputs[Number(id.split("/")[0])].push(floats(raw[0]));
    });
    call.on("error", reject);
    call.on("end", resolve);
  });
  const length = Math.max(...job.sequences.map((steps) => steps.length));
  for (let at = 0; at < length; at++) {
    job.sequences.forEach((steps, which) => {
      if (at >= steps.length) return;
      // Ids are numbers or text: both kinds.
      const id = which % 2 ? { string_param: `sequence ${which}` } : { int64_param: String(which + 1) };
      call.write({
        model_name: job.model,
        id: `${which}/${at}`,
        parameters: map({
          sequence_id: id,
          sequence_start: { bool_param: at === 0 },
          sequence_end: { bool_param: at === steps.length - 1 },
        }),
        inputs: [{ name: job.input, datatype: "FP32", shape: [1, 1, steps[at].length] }],
        raw_input_contents: [bytes(steps[at])],
      });
    });
  }
  // A step of a sequence that nobody has started: an error of its own, and the call lives on.
  call.write({
    model_name: job.model,
    id: "lost",
    parameters: map({ sequence_id: { int64_param: "999" } }),
    inputs: [{ name: job.input, datatype: "FP32", shape: [1, 1, job.sequences[0][0].length] }],
    raw_input_contents: [bytes(job.sequences[0][0])],
  });
  call.end();
  await done;
  return { outputs, errors };
}

const services = await reflection.listServices();
const streamcell = await service("streamcell.v1.StreamCell");
const inference = await service("inference.GRPCInferenceService");
const streamed = await native(streamcell);
const { outputs, errors } = await oip(inference);
process.stdout.write(JSON.stringify({ services, native: streamed, oip: outputs, errors }));
