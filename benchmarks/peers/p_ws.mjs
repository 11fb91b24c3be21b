// ws on Node. /rpc answers, /fan sends to the others. Argument: PORT.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: +process.argv[2], perMessageDeflate: false, backlog: 4096 });
const peers = new Set();

server.on("connection", (socket, request) => {
  if (request.url === "/rpc") {
    socket.on("message", (message) => {
      const { zHorizontal, _requestId } = JSON.parse(message);
      socket.send(JSON.stringify({ result: zHorizontal, _requestId }));
    });
    return;
  }
  peers.add(socket);
  socket.on("message", (message) => {
    const text = message.toString();
    for (const peer of peers) if (peer !== socket) peer.send(text);
  });
  socket.on("close", () => peers.delete(socket));
});
