// One of several socket.io servers on one Redis: rooms, and who publishes to them. Arguments: PORT, the URL of Redis.
// The streams adapter and connection state recovery, as its documentation has them; nothing is published but by a
// client, which is answered when the adapter has been handed the message.
import { createClient } from "redis";
import { Server } from "socket.io";
import { createAdapter } from "@socket.io/redis-streams-adapter";

const redis = createClient({ url: process.argv[3] });
await redis.connect();
const server = new Server({
  adapter: createAdapter(redis),
  connectionStateRecovery: { maxDisconnectionDuration: 2 * 60 * 1000 },
  transports: ["websocket"],
  perMessageDeflate: false,
  httpCompression: false,
  serveClient: false,
});

server.on("connection", (socket) => {
  socket.on("join", (room, done) => {
    socket.join(room);
    done(1);
  });
  socket.on("publish", (room, data, done) => {
    server.to(room).emit("message", data);
    done(1);
  });
});
server.listen(+process.argv[2]);
process.on("SIGTERM", () => {
  server.close();
  setTimeout(() => process.exit(0), 1000);
});
