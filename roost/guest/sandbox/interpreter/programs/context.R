# An R context: reads cells from its standard input, a socket, and answers on descriptor 3, as `frames` says.
#
# R --no-echo --no-restore --no-save --no-readline -f context.R
#
# A cell is lines of base64: its code, then each variable as NAME=VALUE. Every visible value is a result, and so is a plot.
local({
  max_frame <- bitwShiftL(128L, 20L)
  max_rows <- 60L
  max_calls <- 50L
  alphabet <- c(LETTERS, letters, 0:9, "+", "/")
  input <- file("stdin", "rb")
  # R can't write to a descriptor; what does it for R must not end by an interrupt.
  output <- pipe("trap '' INT; exec cat >&3", "wb")
  number <- 1L

  decode64 <- function(text) {
    values <- match(strsplit(sub("=+$", "", text), "")[[1]], alphabet) - 1L
    missing <- (4L - length(values) %% 4L) %% 4L
    quads <- matrix(c(values, rep(0L, missing)), nrow = 4L)
    joined <- quads[1, ] * 262144L + quads[2, ] * 4096L + quads[3, ] * 64L + quads[4, ]
    bytes <- as.raw(rbind(joined %/% 65536L, (joined %/% 256L) %% 256L, joined %% 256L))
    text <- rawToChar(bytes[seq_len(length(bytes) - missing)])
    Encoding(text) <- "UTF-8"
    text
  }

  encode64 <- function(bytes) {
    missing <- (3L - length(bytes) %% 3L) %% 3L
    triples <- matrix(c(as.integer(bytes), rep(0L, missing)), nrow = 3L)
    joined <- triples[1, ] * 65536L + triples[2, ] * 256L + triples[3, ]
    parts <- rbind(joined %/% 262144L, (joined %/% 4096L) %% 64L, (joined %/% 64L) %% 64L, joined %% 64L)
    letters <- alphabet[parts + 1L]
    if (missing > 0L) letters[seq(length(letters) - missing + 1L, length(letters))] <- "="
    paste(letters, collapse = "")
  }

  json <- function(text) {
    text <- enc2utf8(paste(text, collapse = "\n"))
    for (pair in list(c("\\", "\\\\"), c("\"", "\\\""), c("\n", "\\n"), c("\r", "\\r"), c("\t", "\\t"))) {
      text <- gsub(pair[1], pair[2], text, fixed = TRUE)
    }
    paste0("\"", gsub("[[:cntrl:]]", " ", text), "\"")
  }

  send <- function(kind, payload) {
    body <- charToRaw(enc2utf8(payload))
    writeBin(c(charToRaw(sprintf("%s %d\n", kind, length(body))), body), output)
    flush(output)
  }

  send_next <- function(kind) send(kind, sprintf("{\"next\": %d}", number))

  send_error <- function(name, value, trace) {
    fields <- sprintf("\"name\": %s, \"value\": %s, \"traceback\": %s", json(name), json(value), json(trace))
    send("E", paste0("{\"type\": \"error\", ", fields, "}"))
  }

  # `values` are JSON, of the kinds that `names` tells.
  send_result <- function(names, values, main) {
    bundle <- paste(sprintf("\"%s\": %s", names, values), collapse = ", ")
    end <- sprintf("\"extra\": {}, \"is_main_result\": %s}", if (main) "true" else "false")
    send("R", paste0("{\"type\": \"result\", ", bundle, ", ", end))
  }

  receive <- function() {
    head <- raw()
    repeat {
      byte <- readBin(input, "raw", 1L)
      if (length(byte) == 0L) return(NULL)
      if (byte == as.raw(10L)) break
      head <- c(head, byte)
    }
    size <- as.integer(strsplit(rawToChar(head), " ", fixed = TRUE)[[1]][2])
    if (is.na(size) || size > max_frame) return(NULL)
    rawToChar(readBin(input, "raw", size))
  }

  plots <- NULL

  open_plots <- function(...) {
    plots <<- tempfile("plots")
    dir.create(plots)
    grDevices::png(file.path(plots, "%04d.png"), width = 800L, height = 600L)
  }

  send_plots <- function() {
    if (is.null(plots)) return()
    grDevices::graphics.off()
    for (file in list.files(plots, full.names = TRUE)) {
      send_result("png", json(encode64(readBin(file, "raw", file.size(file)))), FALSE)
    }
    unlink(plots, recursive = TRUE)
    plots <<- NULL
  }

  printed <- function(value) {
    shown <- textConnection(NULL, "w", local = TRUE)
    on.exit(close(shown))
    sink(shown)
    tryCatch(print(value), finally = sink())
    textConnectionValue(shown)
  }

  html <- function(frame) {
    escaped <- function(text) gsub("<", "&lt;", gsub("&", "&amp;", enc2utf8(text), fixed = TRUE), fixed = TRUE)
    row <- function(name, cells, tag) {
      paste0("<tr><th>", name, "</th>", paste0("<", tag, ">", cells, "</", tag, ">", collapse = ""), "</tr>")
    }
    shown <- as.matrix(format(frame[seq_len(min(nrow(frame), max_rows)), , drop = FALSE]))
    rows <- vapply(seq_len(nrow(shown)), function(i) row(escaped(row.names(frame)[i]), escaped(shown[i, ]), "td"), "")
    paste0("<table>", paste(c(row("", escaped(names(frame)), "th"), rows), collapse = "\n"), "</table>")
  }

  send_value <- function(value, main) {
    names <- "text"
    shown <- json(printed(value))
    if (is.data.frame(value) && ncol(value) > 0L) {
      table <- tryCatch(html(value), error = function(problem) NULL)  # columns of a kind that has no text
      if (!is.null(table)) {
        names <- c(names, "html")
        shown <- c(shown, json(table))
      }
    }
    send_result(names, shown, main)
  }

  evaluate <- function(code) {
    on.exit(send_plots())
    expressions <- parse(text = code, keep.source = FALSE)
    for (index in seq_along(expressions)) {
      found <- withVisible(eval(expressions[[index]], globalenv()))
      if (found$visible) send_value(found$value, index == length(expressions))
    }
  }

  is_eval <- function(call) identical(call, quote(eval(expressions[[index]], globalenv())))

  # What the cell called, outermost first, of the calls at its error: below the two of `eval`, above R's own two.
  traced <- function(calls) {
    own <- Position(is_eval, calls, right = TRUE, nomatch = 0L)
    if (own == 0L) return(NULL)
    found <- setdiff(seq_along(calls), c(seq_len(own), length(calls) - 0:1))
    calls <- calls[found[seq_along(found) > length(found) - max_calls]]
    sprintf("%d. %s", seq_along(calls), vapply(calls, function(call) deparse(call, 60L, nlines = 1L)[1], ""))
  }

  run <- function(cell) {
    code <- decode64(cell[1])
    pairs <- vapply(cell[-1], decode64, "", USE.NAMES = FALSE)
    names <- sub("=.*", "", pairs)
    values <- sub("^[^=]*=", "", pairs)
    before <- Sys.getenv(names, unset = NA, names = TRUE)
    if (length(names)) do.call(Sys.setenv, structure(as.list(values), names = names))
    calls <- NULL
    # What the cell itself warns of was called by nothing that its author knows.
    warned <- function(problem) {
      if (is_eval(conditionCall(problem)) && identical(getOption("warn"), 1L)) {
        message("Warning: ", conditionMessage(problem))
        invokeRestart("muffleWarning")
      }
    }
    tryCatch(
      withCallingHandlers(evaluate(code), error = function(problem) calls <<- sys.calls(), warning = warned),
      error = function(problem) {
        if (is_eval(conditionCall(problem))) problem$call <- NULL
        trace <- c(sub("\n$", "", as.character(problem)), traced(calls))
        send_error("ERROR", conditionMessage(problem), paste(trace, collapse = "\n"))
      },
      interrupt = function(problem) send_error("KeyboardInterrupt", "", "KeyboardInterrupt"),
      finally = {
        Sys.unsetenv(names[is.na(before)])
        kept <- before[!is.na(before)]
        if (length(kept)) do.call(Sys.setenv, as.list(kept))
      }
    )
  }

  options(warn = 1L, device = open_plots)
  send_next("Y")
  repeat {
    cell <- receive()
    if (is.null(cell)) break
    number <- number + 1L
    tryCatch(run(strsplit(cell, "\n", fixed = TRUE)[[1]]), interrupt = function(problem) NULL)
    flush(stdout())
    send_next("D")
  }
})
