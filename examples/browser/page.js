// Streams the microphone's samples through a session of a served model, and draws the outputs.

const RATE = 16_000; // Hz, what the model of `streamcell demo voice` hears
const MESSAGE_STEPS = 5; // 50 ms of blocks of 10 ms
const MOST_WAITING_BYTES = 64 * 1024; // that the connection has not taken; then frames are left out, and counted
const KEPT_STEPS = 3000;

const byId = (id) => document.getElementById(id);
const status = (text) => { byId("status").textContent = text; };

const toBase64 = (floats) => btoa(String.fromCharCode(...new Uint8Array(floats.buffer)));
const toFloats = (text) => new Float32Array(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer);
const toBase64Url = (text) => btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** One session: what was sent, what came back, and how it ended. */
class Session {
  /** `begin`: called with the number of samples of a timestep once the session is open. */
  constructor(url, model, token, begin) {
    this.begin = begin;
    this.sent = [];
    this.outputs = [];
    this.dropped = 0;
    this.opened = this.ended = this.error = null;
    const subprotocols = ["streamcell.v1.json"];
    if (token) subprotocols.push(`streamcell.bearer.${toBase64Url(token)}`);
    this.socket = new WebSocket(url, subprotocols);
    this.socket.onopen = () => this.send({open: {model}});
    this.socket.onmessage = ({data}) => this.receive(JSON.parse(data));
    this.socket.onclose = ({code}) => this.close(code);
    this.waiting = [];
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  receive(reply) {
    if (reply.error) {
      this.error = reply.error;
    } else if (reply.opened) {
      this.opened = reply.opened;
      const shapes = reply.opened.inputs.map((each) => each.stepShape ?? []);
      if (shapes.length !== 1 || shapes[0].length !== 1) {
        const told = shapes.map((each) => `[${each.join(", ")}]`).join(" and ");
        this.error = {reason: "PAGE", message: `the model takes ${told}; this page sends blocks of samples, such as [160]`};
        this.socket.close();
      } else {
        status(`Streaming through ${reply.opened.model}, version ${reply.opened.version}.`);
        this.size = Number(shapes[0][0]);
        this.begin(this.size);
      }
    } else if (reply.outputs) {
      const values = toFloats(reply.outputs[0]);
      const width = values.length / reply.steps;
      for (let step = 0; step < reply.steps; step++) {
        this.outputs.push([...values.subarray(step * width, (step + 1) * width)]);
      }
      if (this.outputs.length > KEPT_STEPS) this.outputs.splice(0, this.outputs.length - KEPT_STEPS);
      draw(this.outputs);
      if (width === 1) say(values.at(-1));
    }
  }

  /** Take one step's samples. */
  step(samples) {
    if (!this.opened || this.stopping || this.socket.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > MOST_WAITING_BYTES) {
      this.dropped++;
      status(`The connection is too slow: ${this.dropped} steps were left out.`);
      return;
    }
    this.waiting.push(...samples);
    if (this.waiting.length >= this.size * MESSAGE_STEPS) this.flush();
  }

  flush() {
    this.send({inputs: [toBase64(Float32Array.from(this.waiting))]});
    this.sent.push(...this.waiting);
    const most = this.size * KEPT_STEPS;
    if (this.sent.length > most) this.sent.splice(0, this.sent.length - most);
    this.waiting = [];
  }

  /** Half-close: the last replies still come. */
  stop() {
    this.stopping = true;
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (this.waiting.length) this.flush();
    this.socket.send("");
  }

  close(code) {
    this.ended = code;
    const why = this.error ? `${this.error.reason}: ${this.error.message}` : code === 1000 ? "closed" : null;
    status(`Ended: ${why ?? `code ${code}; is the server there, with --websocket-port, and may this page connect (--websocket-origins)?`}`);
    finish();
  }
}

const COLOURS = ["#0b6", "#d33", "#36c", "#c80"];

function draw(outputs) {
  const canvas = byId("plot"), pen = canvas.getContext("2d");
  const shown = outputs.slice(-canvas.width / 2);
  const all = shown.flat(), low = Math.min(...all), high = Math.max(...all);
  const y = (value) => canvas.height - 10 - ((value - low) / (high - low || 1)) * (canvas.height - 20);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = 2;
  shown[0].forEach((_, line) => {
    pen.strokeStyle = COLOURS[line % COLOURS.length];
    pen.beginPath();
    shown.forEach((each, at) => pen.lineTo(at * 2, y(each[line])));
    pen.stroke();
  });
}

/** Show what the log-odds of speech mean. */
function say(logOdds) {
  const speech = logOdds > 0;
  byId("said").value = speech ? "speech" : "silence";
  byId("said").className = speech ? "speech" : "";
}

let microphone = null, audio = null;

async function start(event) {
  event.preventDefault();
  const {url, model, token} = Object.fromEntries(new FormData(byId("form")));
  byId("start").disabled = true;
  try {
    microphone = await navigator.mediaDevices.getUserMedia({
      audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1},
    });
    audio = new AudioContext({sampleRate: RATE}); // the browser resamples
    await audio.audioWorklet.addModule("blocks.js");
    const source = audio.createMediaStreamSource(microphone);
    const session = new Session(url, model, token, (size) => {
      const node = new AudioWorkletNode(audio, "blocks", {numberOfOutputs: 0, processorOptions: {size}});
      node.port.onmessage = ({data}) => session.step(data);
      source.connect(node);
    });
    window.session = session; // to look at, in the browser's console
    byId("stop").disabled = false;
    byId("stop").onclick = () => session.stop();
  } catch (error) {
    status(`Cannot start: ${error.message}`);
    finish();
  }
}

function finish() {
  microphone?.getTracks().forEach((track) => track.stop());
  audio?.close();
  microphone = audio = null;
  byId("start").disabled = false;
  byId("stop").disabled = true;
}

byId("form").onsubmit = start;
