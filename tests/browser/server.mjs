/**
 * `twistd zcomm` as a child of the tests, which may kill it and start it again on the same port. How to start it
 * stands in ZCOMM_TEST_SERVER, a JSON object {twistd: [command, …], zcomm: command, environ, files, …}.
 */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';

export const given = JSON.parse(process.env.ZCOMM_TEST_SERVER);
const DEADLINE = 60_000;

export class Server {
  port = 0;
  log = '';
  #child = null;
  #options;
  #command = null;

  constructor(...options) {
    this.#options = options;
  }

  /** A program with a server of its own, which takes its port from the environment and its options from nobody. */
  static of(command) {
    const server = new Server();
    server.#command = command;
    return server;
  }

  get pid() {
    return this.#child?.pid;
  }

  /** Start and wait until it listens; the second time on the port of the first. */
  async start() {
    const options = ['--port', String(this.port), '--files', given.files, ...this.#options];
    const [program, ...words] = this.#command ?? [...given.twistd, ...options];
    const child = spawn(program, words, {
      env: this.#command === null ? given.environ : { ...given.environ, WEBSOCKET_PORT: String(this.port) },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child = child;
    child.ended = once(child, 'exit');
    let heard = '';
    this.port = await new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`the server did not listen:\n${heard}`)), DEADLINE);
      const hear = (data) => {
        heard += data;
        this.log += data;
        const found = /listening on ws:\/\/127\.0\.0\.1:(\d+)/.exec(heard);
        if (found) {
          clearTimeout(late);
          resolve(Number(found[1]));
        }
      };
      child.stdout.setEncoding('utf8').on('data', hear);
      child.stderr.setEncoding('utf8').on('data', hear);
      child.on('exit', () => {
        clearTimeout(late);
        reject(new Error(`the server ended:\n${heard}`));
      });
    });
  }

  /** Wait until it says something more. */
  said() {
    return once(this.#child.stdout, 'data');
  }

  async stop(signal = 'SIGTERM') {
    if (this.#child === null) return;
    this.#child.kill(signal);
    await this.#child.ended;
    this.#child = null;
  }

  /** Where it keeps its data, beside that of the others. */
  static dataDirectory(name) {
    return `${given.files}-${name}`;
  }

  /** A link that a user asks for: the page's address with a code in its fragment, which works once. */
  async link() {
    const at = this.#options.indexOf('--data-dir');
    const where = at < 0 ? [] : this.#options.slice(at, at + 2);
    const { stdout } = await promisify(execFile)(given.zcomm, ['url', ...where], { env: given.environ });
    return stdout.trim();
  }

  /** A new token for `user`, who has that role. */
  static async token(user, role) {
    const command = ['token', 'add', user, '--role', role, '--json'];
    const { stdout } = await promisify(execFile)(given.zcomm, command, { env: given.environ });
    return JSON.parse(stdout).token;
  }

  /** Take all tokens of `user` away. */
  static async revoke(user) {
    await promisify(execFile)(given.zcomm, ['token', 'revoke', user], { env: given.environ });
  }
}
