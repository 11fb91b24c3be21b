/** Run by Jest, whose tests are CommonJS unless somebody says otherwise. */
const { zBifrost, ConnectionLost } = require('zbifrost');

test('the package is there by require, and says so when nobody listens', async () => {
    expect(new zBifrost('ws://127.0.0.1:9').state).toBe('disconnected');
    const { WebSocket } = require('ws');
    for (const options of [{ WebSocket }, {}]) {
        const client = new zBifrost(process.env.ZCOMM_NOBODY, 'token', options);
        await expect(client.connect()).rejects.toBeInstanceOf(ConnectionLost);
    }
});
