import java.io.DataInputStream;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import jdk.jshell.Diag;
import jdk.jshell.EvalException;
import jdk.jshell.JShell;
import jdk.jshell.JShellException;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import sun.misc.Signal;

/**
 * A Java context: reads cells from its standard input, a socket, and answers there, as `frames` says.
 *
 * <p>java --add-modules jdk.jshell Context.java. A cell is lines of base64: its code, then each variable as NAME=VALUE. As with
 * E2B, variables are system properties.
 */
public final class Context {
  private static final int MAX_FRAME = 128 << 20;
  private static final String[] IMPORTS = {"java.io.*", "java.math.*", "java.util.*", "java.util.function.*", "java.util.stream.*"};

  private final DataInputStream in = new DataInputStream(new java.io.BufferedInputStream(new FileInputStream(FileDescriptor.in)));
  private final FileOutputStream out = new FileOutputStream(FileDescriptor.in);
  private final JShell shell = JShell.builder().executionEngine("local").build();
  private volatile boolean interrupted;
  private int number = 1;

  public static void main(String[] arguments) throws IOException {
    System.getenv().forEach((name, value) -> System.getProperties().putIfAbsent(name, value));
    new Context().serve();
    System.exit(0);
  }

  private void serve() throws IOException {
    for (String each : IMPORTS) shell.eval("import " + each + ";");
    Signal.handle(
        new Signal("INT"),
        signal -> {
          interrupted = true;
          shell.stop();
        });
    send("Y", next());
    for (byte[] cell = receive(); cell != null; cell = receive()) {
      run(new String(cell, StandardCharsets.US_ASCII).split("\n", -1));
      System.out.flush();
      System.err.flush();
      send("D", next());
    }
  }

  private void run(String[] cell) throws IOException {
    Map<String, String> before = new HashMap<>();
    for (String each : Arrays.copyOfRange(cell, 1, cell.length)) {
      String[] pair = decode(each).split("=", 2);
      before.put(pair[0], System.getProperty(pair[0]));
      System.setProperty(pair[0], pair[1]);
    }
    interrupted = false;
    number += 1;
    try {
      evaluate(decode(cell[0]));
    } finally {
      before.forEach(
          (name, value) -> {
            if (value == null) System.clearProperty(name);
            else System.setProperty(name, value);
          });
    }
  }

  /** One statement after the other, until one fails. The value of the last one is the result. */
  private void evaluate(String code) throws IOException {
    String value = null;
    for (String rest = code; !rest.isBlank(); ) {
      CompletionInfo info = shell.sourceCodeAnalysis().analyzeCompletion(rest);
      boolean complete = info.completeness().isComplete();
      List<SnippetEvent> events = shell.eval(complete ? info.source() : rest);
      value = null;
      for (SnippetEvent event : events) {
        if (event.causeSnippet() != null) continue;
        if (interrupted) {
          error("KeyboardInterrupt", "", "KeyboardInterrupt");
          return;
        }
        if (event.status() == Snippet.Status.REJECTED) {
          String text = problems(event.snippet());
          error("CompilationException", text, text);
          return;
        }
        if (event.exception() != null) {
          error(event.exception());
          return;
        }
        value = isExpression(event.snippet()) ? event.value() : null;
      }
      rest = complete ? info.remaining() : "";
    }
    if (value != null && !value.isEmpty() && !value.equals("null")) {
      send("R", "{\"type\": \"result\", \"text\": " + json(plain(value)) + ", \"extra\": {}, \"is_main_result\": true}");
    }
  }

  private static boolean isExpression(Snippet snippet) {
    boolean named = snippet.subKind() == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND; // the shell gave the value a name
    return named || snippet.kind() == Snippet.Kind.EXPRESSION;
  }

  private String problems(Snippet snippet) {
    return shell.diagnostics(snippet).map((Diag each) -> each.getMessage(null)).collect(Collectors.joining("\n"));
  }

  private void error(JShellException exception) throws IOException {
    String name = exception instanceof EvalException known ? known.getExceptionClassName() : exception.getClass().getName();
    String value = String.valueOf(exception.getMessage());
    StringBuilder trace = new StringBuilder(name + ": " + value);
    for (StackTraceElement each : exception.getStackTrace()) trace.append("\n\tat ").append(each);
    error(name.substring(name.lastIndexOf('.') + 1), value, trace.toString());
  }

  private void error(String name, String value, String trace) throws IOException {
    String fields = "\"name\": " + json(name) + ", \"value\": " + json(value) + ", \"traceback\": " + json(trace);
    send("E", "{\"type\": \"error\", " + fields + "}");
  }

  private String next() {
    return "{\"next\": " + number + "}";
  }

  private void send(String kind, String payload) throws IOException {
    byte[] body = payload.getBytes(StandardCharsets.UTF_8);
    byte[] head = (kind + " " + body.length + "\n").getBytes(StandardCharsets.US_ASCII);
    byte[] frame = Arrays.copyOf(head, head.length + body.length);
    System.arraycopy(body, 0, frame, head.length, body.length);
    out.write(frame);
  }

  /** The next cell; null when the daemon has gone. */
  private byte[] receive() throws IOException {
    StringBuilder head = new StringBuilder();
    for (int each = in.read(); each != '\n'; each = in.read()) {
      if (each < 0) return null;
      head.append((char) each);
    }
    int length = Integer.parseInt(head.substring(head.indexOf(" ") + 1));
    if (length > MAX_FRAME) throw new IOException("a frame is too large");
    return in.readNBytes(length);
  }

  private static String decode(String text) {
    return new String(Base64.getDecoder().decode(text), StandardCharsets.UTF_8);
  }

  /** A string's own text, of the literal that the shell shows. */
  private static String plain(String value) {
    boolean literal = value.length() > 1 && value.startsWith("\"") && value.endsWith("\"");
    return literal ? value.substring(1, value.length() - 1).translateEscapes() : value;
  }

  private static String json(String text) {
    StringBuilder result = new StringBuilder("\"");
    for (char each : text.toCharArray()) {
      if (each == '"' || each == '\\') result.append('\\').append(each);
      else if (each < ' ' || each > '~') result.append(String.format("\\u%04x", (int) each));
      else result.append(each);
    }
    return result.append('"').toString();
  }
}
