// Runs on the browser's audio thread and posts the samples, in blocks of the size that the model takes.
class Blocks extends AudioWorkletProcessor {
  constructor({processorOptions: {size}}) {
    super();
    this.block = new Float32Array(size);
    this.count = 0;
  }

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.block[this.count++] = sample;
      if (this.count === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("blocks", Blocks);
