import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** The WebSocket of Java's HttpClient, which splits messages and answers pings as it likes: Exercise.java URL TOKEN. */
class Exercise implements WebSocket.Listener {
    private final LinkedBlockingQueue<String> heard = new LinkedBlockingQueue<>();
    private final StringBuilder part = new StringBuilder();

    @Override
    public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean last) {
        part.append(data);
        if (last) {
            heard.add(part.toString());
            part.setLength(0);
        }
        socket.request(1);
        return null;
    }

    @Override
    public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
        heard.add(code + " " + reason);
        return null;
    }

    String next() throws Exception {
        String message = heard.poll(20, TimeUnit.SECONDS);
        if (message == null) throw new IllegalStateException("nothing came");
        return message;
    }

    static void equal(String seen, String right) {
        if (!seen.equals(right)) throw new IllegalStateException(seen + ", not " + right);
    }

    static WebSocket open(String url, String token, Exercise listener) {
        return HttpClient.newHttpClient()
                .newWebSocketBuilder()
                .subprotocols("zbifrost.v1", "bearer." + token)
                .buildAsync(URI.create(url), listener)
                .join();
    }

    public static void main(String[] given) throws Exception {
        Exercise listener = new Exercise();
        WebSocket socket = open(given[0], given[1], listener);
        equal(socket.getSubprotocol(), "zbifrost.v1");
        socket.sendText("{\"zKey\": \"ping\", \"zHorizontal\":", false).join();
        socket.sendText(" \"Zo\u00eb \ud83d\ude00\", \"_requestId\": 9007199254740993}", true).join();
        equal(listener.next(), "{\"result\":\"Zo\u00eb \ud83d\ude00\",\"_requestId\":9007199254740993}");
        String text = "x".repeat(500_000);
        socket.sendText("{\"zKey\": \"ping\", \"zHorizontal\": \"" + text + "\"}", true).join();
        equal(listener.next(), "{\"result\":\"" + text + "\"}");
        socket.sendClose(WebSocket.NORMAL_CLOSURE, "").join();
        equal(listener.next(), "1000 ");
        Exercise refused = new Exercise();
        open(given[0], "wrong", refused);
        equal(refused.next().substring(0, 5), "1008 ");
        System.exit(0);
    }
}
