/** The chat of the demo page: two users in two tabs, of which one's connection can be cut. */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { zBifrost } from '../../js/zBifrost.js';
import { isState, launchBeside, openTab } from './browser.mjs';
import { Server, given } from './server.mjs';

const TOPIC = 'room:demo';
const server = new Server();
let browser;
let wire;
let tokens;
let alice;
let bob;

/** A way to the server that can be cut while the server goes on. */
class Wire {
  #sockets = new Set();
  #isCut = false;
  #listener = createServer((socket) => {
    if (this.#isCut) {
      socket.destroy();
      return;
    }
    const other = connect(server.port, '127.0.0.1');
    for (const [from, to] of [
      [socket, other],
      [other, socket],
    ]) {
      this.#sockets.add(from);
      from.on('error', () => {});
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });

  async open() {
    await new Promise((resolve) => this.#listener.listen(0, '127.0.0.1', resolve));
    this.port = this.#listener.address().port;
  }

  cut() {
    this.#isCut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend() {
    this.#isCut = false;
  }

  close() {
    this.cut();
    this.#listener.close();
  }
}

before(async () => {
  wire = new Wire();
  browser = await launchBeside(server.start(), wire.open());
  const [one, two] = await Promise.all([Server.token('alice', 'admin'), Server.token('bob', 'admin')]);
  tokens = { alice: one, bob: two };
  [alice, bob] = await Promise.all([visit(server.port, one), visit(wire.port, two)]);
});

after(async () => {
  await browser?.close();
  wire.close();
  await server.stop();
});

afterEach(() => {
  for (const tab of [alice, bob]) assert.deepEqual(tab.complaints.splice(0), []);
});

/** A tab of `token`'s owner, signed in. `tab.sent` has all commands that it sends. */
async function visit(port, token, options) {
  const tab = await openTab(browser, options);
  tab.sent = [];
  tab.on('websocket', (socket) => socket.on('framesent', ({ payload }) => tab.sent.push(JSON.parse(payload))));
  await tab.addInitScript((kept) => sessionStorage.setItem('zbifrost.token', kept), token);
  await tab.goto(`http://127.0.0.1:${port}/`);
  await isState(tab, 'connected');
  return tab;
}

const box = (tab) => tab.getByRole('textbox', { name: 'Message' });
const people = (tab) => tab.getByRole('list', { name: 'Here' });
const lines = (tab, text) => tab.locator('#chat-said > li', { hasText: text });
const typing = (tab) => tab.locator('#chat-typing');
const note = (tab, text) => tab.locator('#chat-note', { hasText: text }).waitFor();

async function say(tab, text) {
  await box(tab).fill(text);
  await box(tab).press('Enter');
}

/** Wait until exactly that was said, as far as it came, with its state; each is `who: text`. */
async function reads(tab, expected) {
  const read = () =>
    tab.evaluate(() =>
      [...document.querySelectorAll('#chat-said > li')].map((line) => {
        if (line.classList.contains('divider')) return `-- ${line.textContent}`;
        const marks = ['missed', 'gone', 'waiting'].filter((mark) => line.classList.contains(mark));
        const who = line.querySelector('.who b').textContent + (line.classList.contains('own') ? ' (you)' : '');
        return [`${who}: ${line.querySelector('.text').textContent}`, ...marks].join(' | ');
      }),
    );
  let found;
  try {
    await tab.waitForFunction(
      (count) => document.querySelectorAll('#chat-said > li').length === count &&
        !document.querySelector('#chat-said .waiting'),
      expected.length,
      { timeout: 10_000 },
    );
  } finally {
    found = await read();
    assert.deepEqual(found, expected);
  }
}

/** Bob's connection can be had again, and is soon: the page may have it before the button is pressed. */
async function comeBack() {
  wire.mend();
  const retry = bob.getByRole('button', { name: 'Try now' });
  await retry.click({ timeout: 2000 }).catch(() => {});
  await isState(bob, 'connected');
}

/** The next test begins with an empty chat, in which both are. */
async function anew() {
  await Promise.all([alice.reload(), bob.reload()]);
  await Promise.all([isState(alice, 'connected'), isState(bob, 'connected')]);
  await Promise.all([box(alice).waitFor(), box(bob).waitFor()]);
  await Promise.all([alice, bob].map((tab) => people(tab).getByText(tab === alice ? 'bob' : 'alice').waitFor()));
}

describe('two users', () => {
  it('read each other, in one order, with who said it and when; what was said is text', async () => {
    await say(alice, 'Hello <b>Bob</b>');
    await lines(bob, 'Hello').waitFor();
    await say(bob, 'Hello\n  Alice');
    await lines(alice, /Alice$/).waitFor();
    await reads(alice, ['alice (you): Hello <b>Bob</b>', 'bob: Hello\n  Alice']);
    await reads(bob, ['alice: Hello <b>Bob</b>', 'bob (you): Hello\n  Alice']);
    for (const tab of [alice, bob]) {
      const times = await tab
        .locator('#chat-said time')
        .evaluateAll((all) => all.map((each) => Date.parse(each.dateTime)));
      assert.equal(times.length, 2);
      for (const time of times) assert.ok(Math.abs(Date.now() - time) < 60_000);
    }
  });

  it('are among those who are here, each with their tabs, until they leave', async () => {
    assert.equal((await people(alice).innerText()).replace(/\s+/g, ' '), 'alice you bob');
    const third = await visit(server.port, tokens.bob);
    await people(alice).getByText('2 tabs').waitFor();
    await people(third).getByText('you, 2 tabs').waitFor();
    await third.context().close();
    await people(alice).getByText('2 tabs').waitFor({ state: 'detached' });
  });

  it('who come later find what was said', async () => {
    const late = await visit(server.port, tokens.bob);
    await reads(late, ['alice: Hello <b>Bob</b>', 'bob (you): Hello\n  Alice']);
    await late.context().close();
  });

  it('see who is typing, until it is said, deleted or left alone', async () => {
    await box(alice).pressSequentially('Hel');
    await typing(bob).getByText('alice is typing').waitFor();
    assert.equal(await typing(alice).textContent(), '');
    await box(alice).press('Enter');
    await typing(bob).filter({ hasText: /^$/ }).waitFor({ state: 'attached' });
    await box(alice).pressSequentially('H');
    await typing(bob).getByText('alice is typing').waitFor();
    await box(alice).press('Backspace');
    await typing(bob).filter({ hasText: /^$/ }).waitFor({ state: 'attached' });
    // Once is told for many keys, and once when none follow.
    alice.sent.length = 0;
    await box(alice).pressSequentially('Hello there');
    await typing(bob).getByText('alice is typing').waitFor();
    await typing(bob).filter({ hasText: /^$/ }).waitFor({ state: 'attached' });
    const states = alice.sent.filter(({ zKey }) => zKey === 'zPresence').map(({ zHorizontal }) => zHorizontal.state);
    assert.deepEqual(states, [{ typing: true }, {}]);
    await box(alice).fill('');
  });
});

describe('a lost connection', () => {
  beforeEach(anew);

  it('is followed by what was missed, marked, and by what was said meanwhile, once', async () => {
    await say(alice, 'before the loss');
    await lines(bob, 'before the loss').waitFor();
    const count = await bob.locator('#chat-said > li').count();
    wire.cut();
    await note(bob, 'Away.');
    await people(alice).getByText('bob').waitFor({ state: 'detached' });
    await say(alice, 'missed one');
    await lines(alice, 'missed one').waitFor();
    const other = await visit(server.port, tokens.bob);
    await box(other).waitFor();
    await say(other, 'missed two');
    await say(bob, 'said while away');
    await lines(bob, 'Sending').waitFor();
    await lines(alice, 'missed two').waitFor();
    await comeBack();
    await lines(alice, 'said while away').waitFor();
    await bob.waitForFunction(() => document.querySelector('#chat-said .waiting') === null);
    const tail = await bob
      .locator('#chat-said > li')
      .evaluateAll((all) => all.map((line) => [line.className, line.innerText]));
    assert.deepEqual(
      tail.slice(count).map(([mark, text]) => [mark, text.split('\n').at(-1)]),
      [
        ['divider', 'While you were away: 2 messages'],
        ['missed', 'missed one'],
        ['own missed', 'missed two'], // in another tab
        ['own', 'said while away'],
      ],
    );
    assert.equal(await lines(alice, 'said while away').count(), 1);
    await people(bob).getByText('alice').waitFor();
    await other.context().close();
    // What comes now was not missed.
    await say(alice, 'after the loss');
    await lines(bob, 'after the loss').waitFor();
    assert.equal(await bob.locator('#chat-said .missed').count(), 2);
    assert.equal(await bob.locator('#chat-note').isVisible(), false);
  });

  it('in which nothing was missed adds nothing', async () => {
    await say(alice, 'nothing follows this');
    await lines(bob, 'nothing follows this').waitFor();
    const before_ = await bob.locator('#chat-said').innerText();
    wire.cut();
    await note(bob, 'Away.');
    await comeBack();
    await people(bob).getByText('alice').waitFor();
    assert.equal(await bob.locator('#chat-said').innerText(), before_);
  });
});

describe('a restart of the server', () => {
  it('is told: what was said is gone there, and it goes on', async () => {
    await anew();
    await say(alice, 'before the restart');
    await lines(bob, 'before the restart').waitFor();
    await server.stop('SIGKILL');
    await note(alice, 'Away.');
    await note(bob, 'Away.');
    await say(alice, 'said to nobody yet');
    await server.start();
    await Promise.all([isState(alice, 'connected'), isState(bob, 'connected')]);
    await Promise.all([alice, bob].map((tab) => lines(tab, 'The server has begun this chat anew').waitFor()));
    await alice.waitForFunction(() => document.querySelector('#chat-said .waiting') === null);
    await lines(bob, 'said to nobody yet').waitFor();
    await say(bob, 'and so on');
    await lines(alice, 'and so on').waitFor();
    for (const tab of [alice, bob]) {
      const found = await tab.locator('#chat-said > li').evaluateAll((all) =>
        all.slice(-4).map((line) => [line.classList.contains('gone'), line.innerText.split('\n').at(-1)]),
      );
      assert.deepEqual(found, [
        [true, 'before the restart'],
        [false, 'The server has begun this chat anew. What was said before is gone there.'],
        [false, 'said to nobody yet'],
        [false, 'and so on'],
      ]);
    }
    // Who comes now finds only what there is.
    const late = await visit(server.port, tokens.bob);
    await reads(late, ['alice: said to nobody yet', 'bob (you): and so on']);
    await late.context().close();
  });
});

describe('what anybody may publish', () => {
  let client;
  beforeEach(async () => {
    await anew();
    client = new zBifrost(`ws://127.0.0.1:${server.port}`, tokens.bob);
    await client.connect();
  });
  afterEach(() => client.disconnect());

  it('is shown as far as it has a meaning, and harms nothing', async () => {
    const topic = client.topic(TOPIC, { state: { typing: 'yes', name: { a: 1 } } });
    await topic.subscribe();
    const odd = [null, 0, '', [], {}, { text: 5 }, { text: 'dated', at: 'never' }];
    odd.push({ text: 'future', at: '9999-01-01' });
    odd.push(JSON.parse('{"__proto__": {"text": "x"}, "constructor": 1}'), { text: `${'long '.repeat(400)}end` });
    for (const data of [...odd, 'the last one']) await topic.publish(data, { idempotencyKey: crypto.randomUUID() });
    await lines(alice, 'the last one').waitFor();
    assert.equal(await typing(alice).textContent(), '');
    // So is it for who comes later, but for times that nobody can have said it at.
    await alice.reload();
    await lines(alice, 'the last one').waitFor();
    assert.equal(await lines(alice, 'future').locator('time').count(), 0);
    const long = lines(alice, '2,003 characters');
    assert.equal(await long.locator('pre').isVisible(), false);
    await long.locator('summary').press('Enter');
    assert.match(await long.locator('pre').innerText(), /end$/);
  });

  it('stays within 200 lines, at their end, unless somebody reads further up', async () => {
    const topic = client.topic(TOPIC);
    await topic.subscribe();
    const publish = async (from, to) => {
      for (let n = from; n < to; n += 1) {
        await topic.publish({ text: `number ${n}.` });
        if (n % 50 === 49) await new Promise((resolve) => setTimeout(resolve, 500)); // within the publish rate
      }
      await lines(alice, `number ${to - 1}.`).waitFor();
    };
    await publish(0, 220);
    const log = alice.getByRole('log', { name: 'Chat' });
    assert.equal(await alice.locator('#chat-said > li').count(), 200);
    const below = () => log.evaluate((it) => it.scrollHeight - it.scrollTop - it.clientHeight);
    assert.ok((await below()) < 2);
    // The keyboard reaches it.
    await log.focus();
    const scrolled = log.evaluate((it) => new Promise((resolve) => it.addEventListener('scrollend', () => resolve())));
    await alice.keyboard.press('PageUp');
    await scrolled;
    assert.ok((await below()) > 100);
    const seen = () =>
      alice.evaluate(() => {
        const top = document.getElementById('chat-log').getBoundingClientRect().top;
        const found = [...document.querySelectorAll('#chat-said > li')].find(
          (line) => line.getBoundingClientRect().bottom > top + 20,
        );
        return [found.textContent, found.getBoundingClientRect().top];
      });
    const [line, place] = await seen();
    await publish(220, 230);
    const [same, there] = await seen();
    assert.equal(same, line);
    assert.ok(Math.abs(there - place) < 2, `${there} was ${place}`);
    const newer = alice.getByRole('button', { name: '10 new messages' });
    await newer.click();
    assert.ok((await below()) < 2);
    assert.equal(await alice.locator('#chat-newer').isVisible(), false);
  });
});

describe('what the server refuses', () => {
  it('is told at the message, by its name, and can be mended: too long', async () => {
    await anew();
    await box(alice).fill('x'.repeat(70_000));
    await box(alice).press('Enter');
    await lines(alice, '(invalid)').waitFor();
    assert.match(await lines(alice, '(invalid)').innerText(), /65,?536/);
    assert.equal(await lines(alice, '(invalid)').getByRole('button', { name: 'Again' }).count(), 0);
    await lines(alice, '(invalid)').getByRole('button', { name: 'Edit' }).click();
    assert.equal((await box(alice).inputValue()).length, 70_000);
    assert.equal(await lines(alice, '(invalid)').count(), 0);
    assert.equal(await box(alice).evaluate((it) => it === document.activeElement), true);
    await say(alice, 'shorter');
    await lines(bob, 'shorter').waitFor();
  });
});

describe('everybody can use it', () => {
  it('with the keyboard alone: from the list to the message, and on', async () => {
    await anew();
    await alice.getByRole('log', { name: 'Chat' }).focus();
    await alice.keyboard.press('Tab');
    assert.equal(await alice.evaluate(() => document.activeElement.id), 'chat-text');
    await alice.keyboard.type('first line');
    await alice.keyboard.press('Shift+Enter');
    await alice.keyboard.type('second line');
    await alice.keyboard.press('Enter');
    await lines(bob, 'first line\nsecond line').waitFor();
    assert.equal(await alice.evaluate(() => document.activeElement.id), 'chat-text');
    // Nothing is not said.
    const count = await alice.locator('#chat-said > li').count();
    await alice.keyboard.type('   ');
    await alice.keyboard.press('Enter');
    assert.equal(await alice.locator('#chat-said > li').count(), count);
    await box(alice).fill('');
    await alice.keyboard.press('Tab');
    assert.equal(await alice.evaluate(() => document.activeElement.textContent), 'Say');
  });

  for (const colorScheme of ['light', 'dark']) {
    it(`on a phone (${colorScheme}): nothing is wider, and what is pressed is large enough`, async () => {
      const phone = await visit(server.port, tokens.alice, { viewport: { width: 390, height: 844 }, colorScheme });
      await people(phone).getByText('you').waitFor();
      await say(phone, `${'w'.repeat(300)} https://example.com/${'path/'.repeat(40)}`);
      await phone.waitForFunction(() => document.querySelector('#chat-said .waiting') === null);
      assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth), 0);
      const log = phone.getByRole('log', { name: 'Chat' });
      assert.equal(await log.evaluate((it) => it.scrollWidth - it.clientWidth), 0);
      for (const control of [box(phone), phone.getByRole('button', { name: 'Say', exact: true })]) {
        assert.ok((await control.boundingBox()).height >= 44);
      }
      assert.deepEqual(phone.complaints, []);
      await phone.context().close();
    });
  }

  it('and nothing of it is left to the next one', async () => {
    await say(alice, 'a secret');
    await lines(bob, 'a secret').waitFor();
    await box(alice).fill('another secret');
    await alice.getByRole('button', { name: 'Disconnect' }).click();
    await isState(alice, 'disconnected');
    assert.equal(await alice.locator('.chat', { hasText: 'secret' }).count(), 0);
    assert.equal(await alice.locator('#chat-text').inputValue(), '');
    await note(alice, 'Not connected.');
    await people(bob).getByText('alice').waitFor({ state: 'detached' });
  });
});

describe('a server with a policy', () => {
  const place = Server.dataDirectory('chat');
  const policy = join(place, 'policy.yaml');
  mkdirSync(place);
  writeFileSync(
    policy,
    `
writer: {topics: {"room:*": [subscribe, publish, presence]}}
reader: {topics: {"room:*": [subscribe]}}
stranger: {models: {"*": [read]}}
`,
  );
  const strict = new Server('--policy', policy, '--publish-rate', '3');
  let roles;
  before(async () => {
    await server.stop();
    await strict.start();
    const names = ['writer', 'reader', 'stranger'];
    roles = await Promise.all(names.map((role) => Server.token(`a ${role}`, role)));
  });
  after(() => strict.stop());

  it('lets some read only, some not at all, and the page says so', async () => {
    const [writer, reader, stranger] = await Promise.all(roles.map((token) => visit(strict.port, token)));
    await note(stranger, 'does not let you into its chat');
    assert.equal(await box(stranger).isVisible(), false);
    await reader.getByText('You may read here, but not write.').waitFor();
    await note(reader, 'Nothing has been said');
    assert.equal(await box(reader).isVisible(), false);
    // Who is here is not told to everybody.
    assert.equal(await reader.locator('#chat-here').isVisible(), false);
    await people(writer).getByText('a writer').waitFor();
    await say(writer, 'for readers');
    await lines(reader, 'for readers').waitFor();
    for (const tab of [writer, reader, stranger]) {
      assert.deepEqual(tab.complaints, []);
      await tab.context().close();
    }
  });

  it('is too busy for who says too much: what did not go out can be said again, once', async () => {
    const writer = await visit(strict.port, roles[0]);
    await box(writer).waitFor();
    const all = Array.from({ length: 12 }, (_, n) => `hasty ${n}.`);
    for (const text of all) await say(writer, text);
    await lines(writer, '(too_busy)').first().waitFor();
    await writer.waitForFunction(() => !document.querySelector('#chat-said .state.quiet'));
    const again = writer.getByRole('button', { name: 'Again' });
    while ((await again.count()) > 0) {
      await again.first().click();
      await writer.waitForFunction(() => !document.querySelector('#chat-said .state.quiet'));
    }
    await writer.waitForFunction(() => document.querySelector('#chat-said .waiting') === null);
    for (const text of all) assert.equal(await lines(writer, text).count(), 1);
    assert.deepEqual(writer.complaints, []);
    await writer.context().close();
  });
});

describe('without authentication', () => {
  const open = new Server('--no-auth');
  before(async () => {
    await server.stop();
    await open.start();
  });
  after(() => open.stop());

  it('all are one user, and each tab knows what it has said', async () => {
    const [one, two] = await Promise.all([visit(open.port, ''), visit(open.port, '')]);
    await people(one).getByText('you and 1 other').waitFor();
    await people(two).getByText('you and 1 other').waitFor();
    await say(one, 'who is this?');
    await reads(two, ['anonymous: who is this?']);
    await reads(one, ['anonymous (you): who is this?']);
    await box(two).pressSequentially('I');
    await typing(one).getByText('Somebody is typing').waitFor();
    for (const tab of [one, two]) {
      assert.deepEqual(tab.complaints, []);
      await tab.context().close();
    }
  });
});
