// socket.io on Node: a room that all are in, and who publishes to it. Argument: PORT.
import { Server } from "socket.io";

const server = new Server(+process.argv[2], {
  transports: ["websocket"],
  perMessageDeflate: false,
  httpCompression: false,
  serveClient: false,
});

server.on("connection", (socket) => {
  socket.on("join", (room) => socket.join(room));
  socket.on("publish", (message) => socket.to(message.room).emit("message", message.data));
});
