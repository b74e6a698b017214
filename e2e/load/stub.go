package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	answer = `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":` +
		`{"role":"assistant","content":"The answer."},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":200,"completion_tokens":20,"total_tokens":220}}`
	event = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[{"index":0,` +
		`"delta":{"content":"word "},"finish_reason":null}]}` + "\n\n"
	usage = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub","choices":[],` +
		`"usage":{"prompt_tokens":200,"completion_tokens":20,"total_tokens":220}}` + "\n\n"
	done = "data: [DONE]\n\n"
)

// stub answers every POST: whole, or, where the body asks for a stream, in events with a pause between two of them, so
// that each reaches the gateway by itself.
func stub(arguments []string) error {
	flags := flag.NewFlagSet("stub", flag.ExitOnError)
	address := flags.String("address", "127.0.0.1:0", "to listen on")
	events := flags.Int("events", 20, "events of a stream, before usage and end")
	gap := flags.Duration("gap", time.Millisecond, "between two events")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	// Whoever started this reads the port from the first line.
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			w.Header().Set("content-type", "application/json")
			_, _ = io.WriteString(w, answer)
			return
		}
		w.Header().Set("content-type", "text/event-stream; charset=utf-8")
		flusher := w.(http.Flusher)
		for range *events {
			_, _ = io.WriteString(w, event)
			flusher.Flush()
			time.Sleep(*gap)
		}
		// As vLLM: only who asks for the usage gets it.
		if bytes.Contains(body, []byte(`"include_usage":true`)) {
			_, _ = io.WriteString(w, usage)
			flusher.Flush()
		}
		_, _ = io.WriteString(w, done)
	}))
}
