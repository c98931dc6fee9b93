// Calls to the server that serves this page.
"use strict";

/** Returns the answer to a question; throws an Error with the server's message. */
async function call(name, question) {
  let response;
  try {
    response = await fetch(`/${name}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(question),
    });
  } catch {
    throw new Error("the demo does not answer; is the command still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the demo failed (status ${response.status})` }));
  if (answer.error) throw new Error(answer.error);
  return answer;
}

/** Calls one function of the server, one question at a time: while one is answered, newer ones replace each other. */
class Caller {
  /**
   * @param {string} name the function
   * @param {(answer: object, question: object) => void} onAnswer
   * @param {(message: string) => void} onError
   */
  constructor(name, onAnswer, onError) {
    Object.assign(this, { name, onAnswer, onError, waiting: null, running: false });
  }

  /** Asks; an earlier question that was not sent yet is dropped. */
  async ask(question) {
    this.waiting = question;
    if (this.running) return;
    this.running = true;
    while (this.waiting) {
      const asked = this.waiting;
      this.waiting = null;
      try {
        const answer = await call(this.name, asked);
        this.onAnswer(answer, asked);
      } catch (error) {
        this.onError(error.message);
      }
    }
    this.running = false;
  }

  /** Drops a question that was not sent yet. */
  drop() {
    this.waiting = null;
  }
}
