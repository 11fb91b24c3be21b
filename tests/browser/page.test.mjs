/** The demo page, used the way a person would, in two tabs of a real browser against a real server. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { isState, launchBeside, launchIn, openTab, rowOf } from './browser.mjs';
import { Server, given } from './server.mjs';

const server = new Server();
let browser;
let link;
let one;
let two;

before(async () => {
  browser = await launchBeside(server.start());
  const links = await Promise.all([server.link(), server.link()]);
  [link] = links;
  [one, two] = [await openTab(browser), await openTab(browser)];
  await Promise.all([one.goto(links[0]), two.goto(links[1])]);
  await Promise.all([isState(one, 'connected'), isState(two, 'connected')]);
});

after(async () => {
  await browser?.close();
  await server.stop();
});

afterEach(() => {
  for (const page of [one, two]) assert.deepEqual(page.complaints.splice(0), []);
});

const tokenOf = (page) => page.evaluate(() => sessionStorage.getItem('zbifrost.token'));

/** A tab where somebody has signed in before. */
async function openSignedTab(options) {
  const page = await openTab(browser, options);
  await page.addInitScript((token) => sessionStorage.setItem('zbifrost.token', token), await tokenOf(one));
  await page.goto(link.split('#')[0]);
  return page;
}

/** Fill the dialog for a row and press a button of it. */
async function fillRecord(page, values, button) {
  const dialog = page.getByRole('dialog');
  for (const [label, value] of Object.entries(values)) {
    const control = dialog.getByLabel(label, { exact: true });
    if (typeof value === 'boolean') await control.selectOption(value ? 'yes' : 'no');
    else await control.fill(value);
  }
  await dialog.getByRole('button', { name: button, exact: true }).click();
}

async function createUser(page, values, button = 'Create') {
  await page.getByRole('button', { name: 'New', exact: true }).click();
  await fillRecord(page, values, button);
}

const closed = (page) => page.locator('dialog[open]').waitFor({ state: 'detached' });

describe('the link', () => {
  it('signs in, is taken out of the address bar, and leaves a token of twelve hours in the tab alone', async () => {
    assert.match(link, /^http:\/\/127\.0\.0\.1:\d+\/#code=[\w-]{22}$/);
    assert.equal(one.url(), link.split('#')[0]);
    const token = await tokenOf(one);
    assert.match(token, /^zc_(?!operator)[a-z0-9]+_[\w-]{43}$/);
    assert.notEqual(token, await tokenOf(two));
    assert.equal(await one.evaluate(() => sessionStorage.getItem('zbifrost.code')), null);
    assert.equal(
      await one.evaluate((secret) => history.length < 3 && document.documentElement.outerHTML.includes(secret), token),
      false,
    );
  });

  it("b23 leaves nothing of the operator's own token in the files of the browser", async () => {
    const profile = await mkdtemp(join(tmpdir(), 'kept-'));
    const context = await launchIn(profile);
    const page = context.pages()[0] ?? (await context.newPage());
    const opened = await server.link();
    await page.goto(opened);
    await isState(page, 'connected');
    await context.close();
    const written = await readFile(join(given.environ.HOME, '.zolo/zcomm/operator.json'), 'utf8');
    const { token } = JSON.parse(written);
    const files = (await readdir(profile, { recursive: true, withFileTypes: true })).filter((each) => each.isFile());
    const contents = await Promise.all(files.map((each) => readFile(join(each.parentPath ?? each.path, each.name))));
    assert.equal(contents.some((content) => content.includes(token)), false);
    // They are those that hold what the page was, by its code, which is spent.
    assert.ok(contents.some((content) => content.includes(opened.split('#code=')[1])));
  });

  it('contact_a23 works once: whoever finds it in a history later is not let in; a tab stays signed in', async () => {
    const late = await openTab(browser);
    await late.goto(link);
    await isState(late, 'disconnected');
    await late.locator('#connect-error', { hasText: '1008' }).waitFor();
    assert.match(await late.locator('#connect-error').textContent(), /works once.*zcomm url/);
    assert.deepEqual(await late.evaluate(() => Object.entries(sessionStorage)), []);
    // In a tab where the page is already only the fragment changes.
    await late.goto(await server.link());
    await isState(late, 'connected');
    assert.equal(late.url(), link.split('#')[0]);
    const token = await tokenOf(late);
    await late.reload();
    await isState(late, 'connected');
    assert.equal(await tokenOf(late), token);
    await late.context().close();
  });

  it('is not needed again when the page is loaded anew, nor on the way back to it', async () => {
    await one.reload();
    await isState(one, 'connected');
    await one.goto('about:blank');
    await one.goBack();
    await isState(one, 'connected');
  });
});

describe('rows', () => {
  it('that one tab creates appear in the other, and in its feed', async () => {
    await createUser(one, { Name: 'Alice Adams', Email: 'alice@example.com', Age: '31' });
    await closed(one);
    await rowOf(one, 'Alice Adams').waitFor();
    await rowOf(two, 'Alice Adams').waitFor();
    await two.getByRole('log').getByText('create_Users').first().waitFor();
    assert.equal(await one.getByRole('log').getByText('create_Users').count(), 0);
    assert.equal(await rowOf(two, 'Alice Adams').getByRole('cell').nth(3).textContent(), '31');
  });

  it('that the server refuses show each error at its field, and nothing is lost that was typed', async () => {
    await createUser(one, { Name: 'Nobody', Email: 'nowhere', Age: 'old' });
    const dialog = one.getByRole('dialog');
    for (const label of ['Email', 'Age']) {
      const control = dialog.getByLabel(label, { exact: true });
      await one.waitForFunction(
        (element) => element.getAttribute('aria-invalid') === 'true',
        await control.elementHandle(),
      );
      const error = one.locator(`#${await control.getAttribute('aria-describedby')}`);
      assert.equal(await error.isVisible(), true);
      assert.notEqual(await error.textContent(), '');
    }
    assert.equal(await dialog.getByLabel('Name', { exact: true }).getAttribute('aria-invalid'), 'false');
    assert.equal(await dialog.getByLabel('Email', { exact: true }).inputValue(), 'nowhere');
    assert.equal(
      await dialog.getByLabel('Email', { exact: true }).evaluate((element) => element === document.activeElement),
      true,
    );
    // The address is taken: the same place tells it.
    await fillRecord(one, { Email: 'alice@example.com', Age: '30' }, 'Create');
    await dialog.locator('[data-field="age"] [aria-invalid="false"]').waitFor();
    await dialog.locator('[data-field="email"] [aria-invalid="true"]').waitFor();
    await fillRecord(one, { Email: 'nobody@example.com' }, 'Create');
    await closed(one);
    await rowOf(two, 'Nobody').waitFor();
  });

  it('are edited in one tab and change in the other', async () => {
    await rowOf(two, 'Alice Adams').getByRole('button', { name: 'Edit Alice Adams' }).click();
    await fillRecord(two, { Name: 'Alice Baker', Verified: true }, 'Save');
    await closed(two);
    await rowOf(one, 'Alice Baker').waitFor();
    assert.equal(await rowOf(one, 'Alice Baker').getByRole('cell').nth(6).textContent(), 'yes');
    assert.equal(await rowOf(one, 'Alice Adams').count(), 0);
  });

  it('are updated by upsert when the address is known', async () => {
    const before = await one.locator('#rows-body tr').count();
    await createUser(one, { Name: 'Alice Carter', Email: 'alice@example.com' }, 'Upsert by email');
    await closed(one);
    await rowOf(two, 'Alice Carter').waitFor();
    assert.equal(await two.locator('#rows-body tr').count(), before);
  });

  it("are filtered by words and by filters, with the server's word on a wrong one", async () => {
    const search = one.getByLabel('Filter', { exact: true });
    await search.fill('CARTER');
    await rowOf(one, 'Nobody').waitFor({ state: 'detached' });
    await rowOf(one, 'Alice Carter').waitFor();
    await search.fill('{"age__lt": 31}');
    await search.press('Enter');
    await rowOf(one, 'Nobody').waitFor();
    await rowOf(one, 'Alice Carter').waitFor({ state: 'detached' });
    await search.fill('{"agee": 31}');
    await search.press('Enter');
    await one.locator('#filter-error').getByText('agee').waitFor();
    await search.fill('{"age": ');
    await search.press('Enter');
    await one.locator('#filter-error').getByText('not a filter').waitFor();
    await search.fill('nobody has this name');
    await one.getByText('No row matches.').waitFor();
    assert.equal(await one.locator('#filter-error').isVisible(), false);
    await search.fill('');
    await rowOf(one, 'Alice Carter').waitFor();
  });

  it('are sorted by a click on a column, and the column says so', async () => {
    const header = one.getByRole('columnheader', { name: 'Name' });
    const names = () => one.locator('#rows-body td[data-field="name"]').allTextContents();
    await header.getByRole('button').click();
    await one.locator('#rows-body tr:first-child td[data-field="name"]', { hasText: 'Alice Carter' }).waitFor();
    assert.equal(await header.getAttribute('aria-sort'), 'ascending');
    await header.getByRole('button').click();
    await one.locator('#rows-body tr:first-child td[data-field="name"]', { hasText: 'Nobody' }).waitFor();
    assert.equal(await header.getAttribute('aria-sort'), 'descending');
    assert.deepEqual(await names(), (await names()).sort().reverse());
    await one.getByLabel('Sort').selectOption('id DESC');
  });

  it('are deleted after a question, and gone in the other tab', async () => {
    await rowOf(one, 'Nobody').getByRole('button', { name: 'Delete Nobody' }).click();
    await one.getByRole('dialog').getByRole('button', { name: 'Cancel' }).click();
    await closed(one);
    assert.equal(await rowOf(one, 'Nobody').count(), 1);
    await rowOf(one, 'Nobody').getByRole('button', { name: 'Delete Nobody' }).click();
    await one.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
    await closed(one);
    await rowOf(one, 'Nobody').waitFor({ state: 'detached' });
    await rowOf(two, 'Nobody').waitFor({ state: 'detached' });
  });

  it('that are gone while they are edited say so', async () => {
    await createUser(one, { Name: 'Fleeting', Email: 'fleeting@example.com' });
    await rowOf(two, 'Fleeting').getByRole('button', { name: 'Edit Fleeting' }).click();
    await rowOf(one, 'Fleeting').getByRole('button', { name: 'Delete Fleeting' }).click();
    await one.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
    await rowOf(two, 'Fleeting').waitFor({ state: 'detached' });
    await fillRecord(two, { Age: '5' }, 'Save');
    await two.getByRole('dialog').getByText('This row is gone').waitFor();
    await two.keyboard.press('Escape');
    await closed(two);
  });

  it('with markup in them are shown as text, in the table, the feed, the dialogs and the results', async () => {
    const evil = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';
    await createUser(one, { Name: evil, Email: 'evil@example.com', Role: '<b>x</b>' });
    await closed(one);
    await rowOf(two, evil).waitFor();
    await two.getByRole('log').locator('summary').first().click();
    await two.getByRole('log').locator('pre', { hasText: 'onerror' }).first().waitFor();
    await rowOf(two, evil)
      .getByRole('button', { name: `Delete ${evil}` })
      .click();
    await two.getByRole('dialog').getByText(evil).waitFor();
    await two.keyboard.press('Escape');
    await two.locator('#raw').fill(JSON.stringify({ zKey: 'ping', zHorizontal: evil }));
    await two.locator('#raw').press('Control+Enter');
    await two.locator('#raw-result', { hasText: 'onerror' }).waitFor();
    for (const page of [one, two]) {
      assert.equal(await page.evaluate(() => window.hacked), undefined);
      assert.equal(await page.locator('#rows img, #feed img, #raw-result img, dialog img, #rows b').count(), 0);
    }
  });

  it('can be made with the keyboard alone', async () => {
    await one.locator('#rows-title').focus();
    await one.keyboard.press('Tab');
    assert.equal(await one.evaluate(() => document.activeElement.id), 'model');
    await one.keyboard.press('Tab');
    await one.keyboard.press('Enter');
    await one.getByRole('dialog').waitFor();
    await one.keyboard.type('Keyboard Kim');
    await one.keyboard.press('Tab');
    await one.keyboard.type('kim@example.com');
    await one.keyboard.press('Enter');
    await closed(one);
    await rowOf(two, 'Keyboard Kim').waitFor();
  });
});

describe('other models', () => {
  it('are offered with a form of their own fields, and change in both tabs', async () => {
    for (const page of [one, two]) await page.locator('#model').selectOption('Messages');
    await createUser(one, { Text: 'Hello over there' });
    await closed(one);
    await rowOf(two, 'Hello over there').waitFor();
    assert.deepEqual(await one.locator('#rows-head button').allTextContents(), ['ID', 'Text', 'Timestamp']);
    await two.locator('#filter').fill('over');
    await rowOf(two, 'Hello over there')
      .getByRole('button', { name: /^Delete/ })
      .click();
    await two.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
    await rowOf(one, 'Hello over there').waitFor({ state: 'detached' });
    for (const page of [one, two]) {
      await page.locator('#model').selectOption('Users');
      await rowOf(page, 'Alice Carter').waitFor();
    }
  });
});

describe('commands', () => {
  it('are offered by what the server has, and say what they do', async () => {
    assert.deepEqual(await one.locator('#function-examples button').allTextContents(), ['calculateTotal', 'greet']);
    assert.match(await one.locator('#function-about').textContent(), /^Add up a cart/);
    assert.deepEqual(
      await one.locator('#link-paths option').evaluateAll((options) => options.map(({ value }) => value)),
      ['/', '/admin/users'],
    );
    assert.match(await one.locator('#identity').textContent(), /^as ./);
    assert.equal(await one.locator('#open-hint').isVisible(), false);
  });

  it('call a function and show its result and how long it took', async () => {
    await one.getByRole('button', { name: 'Call', exact: true }).click();
    await one.locator('#function-result', { hasText: '"cart_id": 123' }).waitFor();
    assert.match(await one.locator('#function-result').textContent(), /\d ms$/);
  });

  it('ask the visitor, complain about an empty answer, and show progress', async () => {
    await one.getByRole('button', { name: 'greet', exact: true }).click();
    const dialog = one.getByRole('dialog', { name: /name/i });
    await dialog.getByRole('button', { name: 'Answer' }).click();
    await dialog.locator('.error').filter({ hasText: /./ }).waitFor();
    await dialog.getByRole('textbox').fill('Frida');
    await one.keyboard.press('Enter');
    await one.locator('#function-progress-text', { hasText: 'step' }).waitFor();
    await one.locator('#function-result', { hasText: 'Frida' }).waitFor();
    assert.equal(await one.locator('#function-progress').isVisible(), false);
    assert.equal(await two.locator('dialog[open]').count(), 0);
  });

  it('end with an error when the visitor declines', async () => {
    await one.getByRole('button', { name: 'greet', exact: true }).click();
    await one.getByRole('dialog').waitFor();
    await one.keyboard.press('Escape');
    await one.locator('#function-result pre.bad').waitFor();
    await closed(one);
  });

  it('go to a page and open a file', async () => {
    await one.getByRole('button', { name: 'Go', exact: true }).click();
    await one.locator('#link-result', { hasText: '"/admin/users"' }).waitFor();
    await one.getByRole('textbox', { name: 'File' }).fill('config.yaml');
    await one.getByRole('button', { name: 'Open', exact: true }).click();
    await one.locator('#open-result', { hasText: 'theme: dark' }).waitFor();
    await one.getByRole('textbox', { name: 'File' }).fill('../../etc/passwd');
    await one.keyboard.press('Enter');
    await one.locator('#open-result pre.bad', { hasText: 'not_found' }).waitFor();
  });

  it('are sent raw; what is no JSON is said, and not sent', async () => {
    await one.locator('#raw').fill('{"zKey": "nonsense"}');
    await one.getByRole('button', { name: 'Send', exact: true }).click();
    await one.locator('#raw-result pre.bad', { hasText: 'unknown_command' }).waitFor();
    await one.locator('#raw').fill('{"zKey"');
    await one.getByRole('button', { name: 'Send', exact: true }).click();
    await one.locator('#raw-result pre.bad', { hasText: 'JSON' }).waitFor();
  });
});

describe('prompts and displays of a program', () => {
  const program = new Server('--functions', 'support.browser_functions', '--data-dir', Server.dataDirectory('program'));
  let page;

  before(async () => {
    await program.start();
    page = await openTab(browser);
    await page.goto(await program.link());
    await isState(page, 'connected');
  });

  after(() => program.stop());

  afterEach(() => assert.deepEqual(page.complaints.splice(0), []));

  const call = async (name, args = '') => {
    await page.locator('#function-name').fill(name);
    await page.locator('#function-args').fill(args);
    await page.getByRole('button', { name: 'Call', exact: true }).click();
  };
  const answers = (text) => page.locator('#function-result', { hasText: text }).waitFor();

  it('a choice is one of what is offered, and none is not taken for an answer', async () => {
    await call('choose');
    const dialog = page.getByRole('dialog', { name: 'Which bridge?' });
    await dialog.waitFor();
    assert.equal(await dialog.getByRole('radio').count(), 3);
    await dialog.getByRole('button', { name: 'Answer' }).click();
    await dialog.getByText('Choose one.').waitFor();
    await dialog.getByLabel('Bifrost').check();
    await dialog.getByRole('button', { name: 'Answer' }).click();
    await answers('Bifrost');
  });

  it('several may be chosen where the program says so', async () => {
    await call('choose_many');
    const dialog = page.getByRole('dialog');
    assert.equal(await dialog.getByLabel('2').isChecked(), true);
    await dialog.getByLabel('1').check();
    await dialog.getByRole('button', { name: 'Answer' }).click();
    await answers('[\n  1,\n  2\n]');
  });

  it('a confirmation is yes or no, and Escape is neither', async () => {
    for (const [button, result] of [
      ['Yes', 'true'],
      ['No', 'false'],
    ]) {
      await call('confirm');
      await page.getByRole('dialog').getByRole('button', { name: button }).click();
      await answers(result);
    }
    await call('confirm');
    await page.getByRole('dialog').waitFor();
    await page.keyboard.press('Escape');
    await page.locator('#function-result pre.bad').waitFor();
  });

  it('a form shows each complaint at its field and keeps what was typed, but for the password', async () => {
    await call('interview');
    const dialog = page.getByRole('dialog', { name: 'Who are you?' });
    await dialog.getByLabel('Your name').fill('Frida');
    await dialog.getByLabel('Secret').fill('hush');
    await dialog.getByRole('button', { name: 'Answer' }).click();
    const complaint = dialog.locator('.error').filter({ hasText: /./ });
    await complaint.first().waitFor();
    assert.equal(await complaint.count(), 1);
    assert.equal(await dialog.getByLabel('Your name').inputValue(), 'Frida');
    assert.equal(await dialog.getByLabel('Secret').inputValue(), '');
    assert.equal(await dialog.getByLabel('Secret').getAttribute('type'), 'password');
    await dialog.getByLabel('Secret').fill('hush');
    await dialog.getByLabel('red').check();
    await dialog.getByLabel('I agree').check();
    await dialog.getByRole('button', { name: 'Answer' }).click();
    await answers('Frida likes red, agrees, has a secret of 4');
  });

  it('a prompt that nobody answers in time is taken off the screen', async () => {
    await call('hurry');
    await page.getByRole('dialog').waitFor();
    await closed(page);
    await page.locator('#function-result pre.bad', { hasText: 'timeout' }).waitFor();
  });

  it('a prompt is taken off the screen when the server goes away', async () => {
    await call('confirm');
    await page.getByRole('dialog').waitFor();
    await program.stop('SIGKILL');
    await closed(page);
    await page.locator('#function-result pre.bad', { hasText: 'connection_lost' }).waitFor();
    await program.start();
    await isState(page, 'connected');
  });

  it('what the program displays appears in the feed, as text', async () => {
    await call('show');
    await page.getByRole('log').getByText('<b>Look here</b>').waitFor();
  });
});

describe('the server card', () => {
  it('shows the health of the server and its database', async () => {
    await one.locator('#health', { hasText: 'Database' }).waitFor();
    assert.match(await one.locator('#health').textContent(), /Serverok.*Databaseok.*Clients\d/);
  });
});

describe('everybody can use it', () => {
  it('every control has a name, every id is unique, and the headings are in order', async () => {
    await one.getByRole('button', { name: 'New', exact: true }).click();
    const nameless = await one.evaluate(() =>
      [...document.querySelectorAll('input, select, textarea, button, dialog, output')]
        .filter((element) => {
          if (element.closest('[hidden]')) return false;
          const named =
            element.labels?.length || element.getAttribute('aria-label') || element.getAttribute('aria-labelledby');
          return !(
            named ||
            element.tagName === 'OUTPUT' ||
            (element.tagName === 'BUTTON' && element.textContent.trim())
          );
        })
        .map((element) => element.outerHTML),
    );
    assert.deepEqual(nameless, []);
    const twice = await one.evaluate(() =>
      [...document.querySelectorAll('[id]')].map(({ id }) => id).filter((id, n, all) => all.indexOf(id) !== n),
    );
    assert.deepEqual(twice, []);
    assert.equal(await one.getByRole('heading', { level: 1 }).count(), 1);
    assert.equal(await one.evaluate(() => document.documentElement.lang), 'en');
    await one.keyboard.press('Escape');
    await closed(one);
  });

  for (const [width, colorScheme] of [
    [360, 'light'],
    [390, 'dark'],
    [768, 'light'],
    [1024, 'dark'],
    [1200, 'light'],
    [1920, 'dark'],
  ]) {
    it(`fits ${width} px (${colorScheme}) without scrolling sideways, dialogs included`, async () => {
      const page = await openSignedTab({ viewport: { width, height: 740 }, colorScheme });
      const overflow = () =>
        page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      await isState(page, 'connected');
      await rowOf(page, 'Alice Carter').waitFor();
      assert.equal(await overflow(), 0);
      const wide = await page.evaluate(() =>
        [...document.querySelectorAll('#rows-body td, button, input')]
          .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > innerWidth + 0.5)
          .map((element) => element.outerHTML),
      );
      assert.deepEqual(wide, []);
      await page.getByRole('button', { name: 'New', exact: true }).click();
      assert.equal(await overflow(), 0);
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });
  }

  it('text has enough contrast in both schemes', async () => {
    for (const colorScheme of ['light', 'dark']) {
      const page = await openSignedTab({ colorScheme });
      await isState(page, 'connected');
      await rowOf(page, 'Alice Carter').waitFor();
      const weak = await page.evaluate(() => {
        const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        const layers = (element) =>
          element ? [...layers(element.parentElement), getComputedStyle(element).backgroundColor] : [];
        const painted = (...colours) => {
          for (const colour of colours) {
            context.fillStyle = colour;
            context.fillRect(0, 0, 1, 1);
          }
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const luminance = (rgb) =>
          rgb
            .map((part) => part / 255)
            .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
        const texts = [...document.querySelectorAll('body *')].filter(
          (element) =>
            element.checkVisibility() &&
            !element.matches(':disabled') &&
            [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()),
        );
        return texts
          .map((element) => {
            const back = layers(element);
            const [a, b] = [
              luminance(painted(...back)),
              luminance(painted(...back, getComputedStyle(element).color)),
            ].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 120)];
          })
          .filter(([ratio]) => ratio < 4.5);
      });
      assert.deepEqual(weak, [], colorScheme);
      await page.context().close();
    }
  });
});

describe('a token', () => {
  it('that is wrong or missing is refused with the reason, and the right one can be given then', async () => {
    const page = await openTab(browser);
    for (const hash of ['', '#code=wrong', '#code=no%20code', '#token=wrong']) {
      await page.goto('about:blank');
      await page.goto(link.split('#')[0] + hash);
      await isState(page, 'disconnected');
      await page.locator('#connect-error', { hasText: hash === '#code=no%20code' ? 'link' : '1008' }).waitFor();
    }
    assert.equal(await page.getByRole('button', { name: 'New', exact: true }).isDisabled(), true);
    await page.getByRole('textbox', { name: 'Token' }).fill(await tokenOf(one));
    await page.keyboard.press('Enter');
    await isState(page, 'connected');
    await rowOf(page, 'Alice Carter').waitFor();
    assert.equal(await page.getByRole('heading', { name: 'Connect' }).isVisible(), false);
    await page.getByRole('button', { name: 'Disconnect' }).click();
    await isState(page, 'disconnected');
    await page.getByRole('textbox', { name: 'Token' }).fill(await tokenOf(one));
    await page.getByRole('button', { name: 'Connect', exact: true }).click();
    await isState(page, 'connected');
    await rowOf(page, 'Alice Carter').waitFor();
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  it("is in no line of the server's log", async () => {
    assert.ok(!server.log.includes(await tokenOf(one)));
    assert.ok(server.log.length > 0);
    assert.ok(!server.log.includes(link.split('#code=')[1]));
  });
});

describe('a restart of the server', () => {
  for (const signal of ['SIGKILL', 'SIGTERM']) {
    it(`after ${signal} is waited for, and the page goes on by itself with what is new`, async () => {
      await server.stop(signal);
      await Promise.all([isState(one, 'reconnecting'), isState(two, 'reconnecting')]);
      assert.equal(await one.getByRole('button', { name: 'New', exact: true }).isDisabled(), true);
      assert.match(await one.locator('#status-detail').textContent(), /attempt \d/);
      await server.start();
      await one
        .getByRole('button', { name: 'Try now' })
        .click({ timeout: 2000 })
        .catch(() => {}); // it may be back already
      await isState(one, 'connected');
      await createUser(one, { Name: `After ${signal}`, Email: `${signal.toLowerCase()}@example.com` });
      await closed(one);
      await isState(two, 'connected');
      await rowOf(two, `After ${signal}`).waitFor();
      await rowOf(one, `After ${signal}`)
        .getByRole('button', { name: `Delete After ${signal}` })
        .click();
      await one.getByRole('dialog').getByRole('button', { name: 'Delete', exact: true }).click();
      await rowOf(two, `After ${signal}`).waitFor({ state: 'detached' });
    });
  }
});
