/** Types of zBifrost.js. */

export type State = 'disconnected' | 'connecting' | 'connected' | 'reconnecting';

/** What JSON can carry. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export type Row = { [field: string]: any };

/** A bigint where the number would be beyond 2^53. */
export type Id = number | string | bigint;

/** One row by its id, several by a list of ids, or a filter: {active: true, age__gte: 18, $or: [...]}. */
export type Filters = Id | Id[] | { [field: string]: unknown };

/** The part of a browser's WebSocket that the client uses; the `ws` package's class has it too. */
export interface Socket {
  readonly readyState: number;
  binaryType: string;
  send(text: string): void;
  close(code?: number, reason?: string): void;
  addEventListener(type: string, listener: (event: any) => void): void;
}

export interface Options {
  /** Write what happens, by name and never by content: to the console, or to this function. Default false. */
  debug?: boolean | ((line: string) => void);
  /** Connect again after a connection that stood was lost. Default true. */
  autoReconnect?: boolean;
  /** Milliseconds that a call waits for its answer. Default 30000. */
  timeout?: number;
  /** Milliseconds that an attempt to connect may take. Default 10000. */
  connectTimeout?: number;
  /** Ask the server whether it is there when it was silent for longer than this many milliseconds; Infinity: never.
   * A browser tells nothing of a message before all of it is there: where one may take longer than that to arrive, say
   * more. Default 30000. */
  heartbeat?: number;
  /** Calls above this number wait for their turn, or above the smaller one that the server tells. Default 64. */
  maxInFlight?: number;
  /** The WebSocket class, where JavaScript has none of its own. */
  WebSocket?: new (url: string, protocols?: string[]) => Socket;
  /** The longest first delay in milliseconds (default 500), or the rule from attempt (0, 1, …) to milliseconds. */
  retryDelay?: number | ((attempt: number) => number);
  /** Send the token as `?token=` in place of a subprotocol. Default false. */
  tokenInQuery?: boolean;
  /** What an integer beyond 2^53, which no number can hold, is read as: a bigint (the default), its digits as a string,
   * or the nearest number, which may be the id of another row. The first two may be sent back as they are. */
  bigints?: 'bigint' | 'string' | 'number';
}

export interface Progress {
  done: number;
  total: number | null;
  text?: string;
}

/** The options that every call takes. */
export interface CallOptions {
  /** Milliseconds without an answer and without progress; Infinity: no limit. */
  timeout?: number;
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
  /** A write with a key that the server has seen is not run again; the first result comes back. */
  idempotencyKey?: string;
}

export interface FunctionOptions extends CallOptions {
  /** Arguments by name, besides those in the list. */
  kwargs?: { [parameter: string]: unknown };
}

export interface ReadOptions extends CallOptions {
  fields?: string[];
  /** 'created_at DESC, name' or ['created_at DESC', 'name']. */
  order_by?: string | string[];
  limit?: number;
  offset?: number;
}

export interface WriteOptions extends CallOptions {
  /** Without filters: every row, on purpose. */
  all?: boolean;
}

export interface Command {
  zKey?: string;
  /** Another name of zKey. */
  cmd?: string;
  zHorizontal?: unknown;
  [key: string]: unknown;
}

export interface Prompt {
  kind: 'text' | 'password' | 'choice' | 'confirm' | 'form';
  label: string;
  /** text, password, choice: whether an empty answer is none. */
  required?: boolean;
  max_length?: number;
  choices?: (string | number)[];
  /** choice: whether the answer is a list of choices. */
  multiple?: boolean;
  default?: Json;
  /** form: its prompts, by name; none of them is a form. */
  fields?: { [name: string]: Prompt };
}

export interface OpenPrompt {
  askId: number | string;
  /** Seconds the server waits. */
  timeout?: number;
  /** Aborts when the prompt is withdrawn or the connection ends. */
  signal: AbortSignal;
  /** Why the server did not accept the value given before. */
  error: CommandFailed | null;
}

export interface CloseInfo {
  code: number;
  reason: string;
  wasClean: boolean;
  /** Nothing reconnects by itself after this. */
  final: boolean;
  error: BifrostError;
}

export interface Events {
  state: (change: { state: State; previous: State }) => void;
  open: () => void;
  close: (info: CloseInfo) => void;
  /** `attempt` counts from 1; `delay` is in milliseconds from now. */
  reconnecting: (retry: { attempt: number; delay: number }) => void;
  /** What no call's rejection tells: a final close, a bad message, an error that answers no call, a listener that
   * threw. */
  error: (error: BifrostError) => void;
  /** `{ zKey, result }`, with the `changes` of an update (`[{ id, values }]`) and the `ids` of a delete;
   * `{ zKey, many: true }` where that would be too much: read anew what you show. */
  broadcast: (message: any) => void;
  display: (data: any, message: any) => void;
  progress: (message: Progress & { progressOf: number }) => void;
  service: (service: { name: string; status: any }) => void;
  /** What connects this server with others is away (`degraded`), or back (`ok`). Where `recovered` is false, changes may
   * have been missed: read anew what is no live query. */
  engine: (engine: { state: 'degraded' | 'ok'; recovered?: false }) => void;
}

/** Ends what the function that returned it began. */
export type Unsubscribe = () => void;

/** What is told of oneself in a topic with presence; at most 1 KiB as JSON. */
export type PresenceState = { [key: string]: unknown };

/** The states of connections, by user and connection. */
export type Members = { [user: string]: { [connection: string]: any } };

export interface TopicOptions {
  /** Ask who is there, and hear who comes and goes. Default false. */
  presence?: boolean;
  /** Begin with so many of the newest messages, 1 to 1000, here and where it could not be gone on. Default none. */
  last?: number;
  /** One's own state in the presence of the topic. */
  state?: PresenceState;
  /** With false one's own messages come as `own`: without `data`, or with it where they are `replayed`. Default true. */
  echo?: boolean;
}

/** Where one is in a topic that keeps its messages. */
export interface Position {
  epoch: string;
  offset: number;
}

export interface TopicMessage<T = any> {
  /** Undefined for an `own` message that is not `replayed`. */
  data: T;
  /** The user who published it; undefined: the program. */
  from: string | undefined;
  /** Undefined where messages are not kept. */
  offset: number | undefined;
  /** The key it was published with. */
  key: string | undefined;
  /** With `echo: false`: published here, where its data is known. */
  own: boolean;
  /** From what was kept, and not when it was published. */
  replayed: boolean;
}

/** Why messages may be missing: the reasons of the server, or `gap`. */
export type Continuity = { recovered: true; reason?: undefined } | { recovered: false; reason: string };

export interface PresenceSnapshot {
  /** Undefined where it is not known: before the subscription, and where too many are there. */
  readonly members: Members | undefined;
  readonly users: number;
  readonly connections: number;
}

export interface PresenceChange extends PresenceSnapshot {
  /** The users whose first connection has come. */
  arrived: string[];
  /** The users whose last one has left. */
  gone: string[];
}

export interface TopicEvents<T = any> {
  /** Each message once, in order. */
  message: (message: TopicMessage<T>) => void;
  /** After each reconnect, before the messages: whether they go on from the last one. Where they do not, what one has is
   * to be read anew; with the option `last` the newest ones follow. */
  continuity: (continuity: Continuity) => void;
  presence: (change: PresenceChange) => void;
  /** The subscription stands, for the first time or again. */
  subscribed: (position: Partial<Position> & { connection: string | undefined }) => void;
  /** It is over: `unsubscribe` for one's own call, the server's reason, or the code of its refusal. */
  unsubscribed: (end: { reason: string }) => void;
  /** What no promise tells; where nobody listens here, those of the client are told. */
  error: (error: BifrostError) => void;
}

/** Who is in a topic: a store for React (`useSyncExternalStore(subscribe, getSnapshot)`), Vue and Svelte. */
export interface Presence extends PresenceSnapshot {
  /** One's own connection among the members; undefined without presence. */
  readonly connection: string | undefined;
  /** Kept, told to the others, and sent again with each subscription. What fails is told to `error` as well. */
  setState(state: PresenceState): Promise<void>;
  /** Calls `listener` at once and at each change. */
  subscribe(listener: (snapshot: PresenceSnapshot) => void): Unsubscribe;
  /** The same object until something changes. */
  getSnapshot(): PresenceSnapshot;
}

export interface PublishOptions {
  timeout?: number;
  signal?: AbortSignal;
  /** In place of the key that is made for it. */
  idempotencyKey?: string;
}

export interface HistoryOptions {
  /** 1 to 1000; default 100. */
  limit?: number;
  /** The newest first. */
  reverse?: boolean;
  /** Behind this one. */
  since?: Position;
  /** Before this one. */
  before?: Position | number;
  timeout?: number;
  signal?: AbortSignal;
}

export interface History<T = any> {
  epoch?: string;
  offset?: number;
  /** Missing where `recovered` is false. */
  messages?: TopicMessage<T>[];
  /** Whether there are others beyond `limit`. */
  more?: boolean;
  /** Where `since` or `before` were given: false where they are of a numbering that is over. */
  recovered?: boolean;
  reason?: string;
}

/** A topic as one client sees it; `for await` has its messages, and ends with the subscription. It throws with the code
 * `messages_lost` and the reason where messages are missing, or more than 1,000 waited (`too_slow`). It begins with
 * those that came while nobody listened, and goes on where another loop was left. */
export interface Topic<T = any> extends AsyncIterable<TopicMessage<T>> {
  readonly name: string;
  readonly state: 'unsubscribed' | 'subscribing' | 'subscribed';
  /** Of the last message; undefined where none are kept. */
  readonly position: Position | undefined;
  readonly presence: Presence;
  on<E extends keyof TopicEvents<T>>(event: E, listener: TopicEvents<T>[E]): Unsubscribe;
  /** Resolves when the subscription stands, if need be with the next connection. It is kept up until unsubscribe(). */
  subscribe(): Promise<this>;
  unsubscribe(): Promise<void>;
  /** Sent again after a reconnect, within its timeout, with the same key: it counts once. */
  publish(data: T, options?: PublishOptions): Promise<Partial<Position> & { key: string }>;
  history(options?: HistoryOptions): Promise<History<T>>;
}

/** `loading`: no rows have come yet. `live`: the rows are those that match. `stale`: they were, but the connection is
 * away, or nobody listens. `error`: the query has ended, and begins again with the next `subscribe()`. */
export type LiveStatus = 'loading' | 'live' | 'stale' | 'error';

export interface LiveOptions {
  fields?: string[];
  /** 'created_at DESC, name' or ['created_at DESC', 'name']. Equal ones stand in the order of the primary key. */
  order_by?: string | string[];
  /** 1 to 1000. Default 1000, and a query that finds more is refused. */
  limit?: number;
}

/** From the rows that were told before to those that are told with it. */
export interface LiveChange<T = Row> {
  /** `initial`: the first rows. `change`: some have changed. `reset`: they were read anew, after a reconnect for one.
   * `same`: the rows are what they were, and `status`, `error` or `sees` may have changed. */
  readonly kind: 'initial' | 'change' | 'reset' | 'same';
  /** Rows that were not there before; all of them where `kind` is `initial`. */
  readonly added: readonly T[];
  /** Rows that are there no more, as they were. */
  readonly removed: readonly T[];
  /** Rows that were there with other values. Where all three lists are empty, and `kind` is not `same`, the order is
   * another. */
  readonly changed: readonly { readonly row: T; readonly before: T }[];
}

export interface LiveEvents {
  /** A page shows by it that its rows are `stale`. */
  status: (change: { status: LiveStatus; previous: LiveStatus }) => void;
  /** Why it has ended, once, or why it has to wait (`retryable`); where nobody listens here, those of the client are
   * told, unless a loop throws it. */
  error: (error: BifrostError) => void;
}

/** The rows that match, now and from now on: a store for React (`useSyncExternalStore(subscribe, getSnapshot)`), Vue
 * and Svelte. `for await` has the rows now and after each change; where several have come meanwhile, after the last of
 * them. It ends with `stop()` and `disconnect()`, and throws where the query fails. A row that has not changed is the
 * same object as before, also after a reconnect; the list is frozen. */
export interface Live<T = Row> extends AsyncIterable<readonly T[]> {
  readonly rows: readonly T[];
  readonly status: LiveStatus;
  /** Why it has ended, or has to wait; null while all is well. */
  readonly error: BifrostError | null;
  /** `own`: writes that were not made through this server are not seen. Undefined before the first rows. */
  readonly sees: 'all' | 'own' | undefined;
  /** Of key, row and order, as the server told it last. */
  readonly digest: string | undefined;
  /** Calls `listener` at once, and whenever something has changed, rows or not. The first one begins the query, and it
   * ends after the last one has gone. */
  readonly subscribe: (listener: (rows: readonly T[], change: LiveChange<T>) => void) => Unsubscribe;
  /** The same list until a row has changed. */
  readonly getSnapshot: () => readonly T[];
  on<E extends keyof LiveEvents>(event: E, listener: LiveEvents[E]): Unsubscribe;
  /** Ends it at once, for all who subscribe to it and loop over it. */
  stop(): void;
}

export class zBifrost {
  /** @throws TypeError for a URL, token or option that cannot be used. */
  constructor(url?: string | URL, token?: string | null, options?: Options);

  /** The server's address; a token in it is not shown. */
  readonly url: string;
  readonly state: State;
  readonly connected: boolean;
  /** The number of calls without an answer yet. */
  readonly pending: number;

  /** One attempt, now. Rejects with ConnectionRefused or ConnectionLost. */
  connect(): Promise<this>;
  /** Close for good; pending calls and a connect() under way are rejected. */
  disconnect(): void;

  create<T = Row>(model: string, values: object, options?: CallOptions): Promise<T>;
  read<T = Row>(model: string, filters?: Filters | null, options?: ReadOptions): Promise<T[]>;
  update(
    model: string,
    filters: Filters | null | undefined,
    values: object,
    options?: WriteOptions,
  ): Promise<{ updated: number }>;
  delete(model: string, filters?: Filters | null, options?: WriteOptions): Promise<{ deleted: number }>;
  upsert<T = Row>(model: string, values: object, conflictFields?: string | string[], options?: CallOptions): Promise<T>;

  /** zFunc('zFunc(name, {a: 1})', options). */
  zFunc<T = any>(call: `zFunc(${string}`, options?: CallOptions): Promise<T>;
  /** zFunc('name', ...args). */
  zFunc<T = any>(name: string, ...args: unknown[]): Promise<T>;
  call<T = any>(name: string, args?: unknown[], options?: FunctionOptions): Promise<T>;
  zLink<T = any>(path: string, options?: CallOptions): Promise<T>;
  zOpen<T = any>(file: string, options?: CallOptions): Promise<T>;
  /** The second argument is a timeout in milliseconds, or the options of a call. */
  send<T = any>(payload: Command, timeoutMs?: number): Promise<T>;
  send<T = any>(payload: Command, options?: CallOptions): Promise<T>;

  /** The same object for the same name; nothing is sent yet. Other options than before count from the next
   * `subscribe()` on. */
  topic<T = any>(name: string, options?: TopicOptions): Topic<T>;

  /** The rows that `read()` would bring, now and from now on; nothing is sent before somebody subscribes to it or loops
   * over it. Each call makes another: keep it, in React with `useMemo`. */
  live<T = Row>(model: string, filters?: Filters | null, options?: LiveOptions): Live<T>;

  on<E extends keyof Events>(event: E, listener: Events[E]): Unsubscribe;
  onBroadcast(listener: Events['broadcast']): Unsubscribe;
  removeBroadcastListener(listener: Events['broadcast']): void;
  onDisplay(listener: Events['display']): Unsubscribe;
  /** Return the value, or null to cancel; called again with `open.error` when the value is not accepted. */
  onAsk(ask: (prompt: Prompt, open: OpenPrompt) => unknown): Unsubscribe;
}

/** A client that is already connected. */
export function createClient(url?: string | URL, token?: string | null, options?: Options): Promise<zBifrost>;

/** What a page's own client signs in with: the token of the link that it was opened by (`#code=…`), else the one that this
 * tab has from before, else null. A `token` is kept for this tab in its place; '' forgets it.
 * @throws ConnectionRefused where the server does not take the link. */
export function signIn(token?: string): Promise<string | null>;

/** The delay rule of reconnecting: any time up to a limit that doubles from `base` to `cap`, in milliseconds. */
export function fullJitter(rule?: { base?: number; cap?: number; random?: () => number }): (attempt: number) => number;

/** The base of every error of this module; bad arguments, and values that JSON has no form for, are a TypeError. */
export class BifrostError extends Error {
  readonly code: string;
  /** Whether the same call may be made again. After ConnectionLost and RequestTimeout it may also have run: for a change
   * of a model, and a publish, that was sent without an `idempotencyKey` it is false then, since it could be made twice. */
  readonly retryable: boolean;
  /** For bad values: the reason by field name. */
  readonly fields: { [field: string]: string };
}

/** The connection ended before the answer came. */
export class ConnectionLost extends BifrostError {
  readonly closeCode: number;
  readonly reason: string;
}

/** There is no connection: the command was certainly not sent. */
export class NotConnected extends ConnectionLost {}

/** The server did not let this client in, or put it out. */
export class ConnectionRefused extends ConnectionLost {}

/** No answer in time. */
export class RequestTimeout extends BifrostError {}

/** The caller's AbortSignal ended the wait. */
export class RequestAborted extends BifrostError {}

/** The server answered with an error, or would have: `invalid` for a message that is larger than it takes. */
export class CommandFailed extends BifrostError {}
