package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// figures of one run; times in microseconds from the request's first byte to the answer's last.
type figures struct {
	Requests int     `json:"requests"`
	Failed   int     `json:"failed"`
	Problem  string  `json:"problem,omitempty"`
	Seconds  float64 `json:"seconds"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
}

// drive keeps a number of connections busy for a while: each asks again as soon as it has its answer.
func drive(arguments []string) error {
	flags := flag.NewFlagSet("drive", flag.ExitOnError)
	address := flags.String("address", "", "HOST:PORT to ask")
	connections := flags.Int("connections", 1, "at the same time")
	duration := flags.Duration("duration", time.Second, "until no request is begun")
	model := flags.String("model", "bench/chat", "asked for")
	size := flags.Int("bytes", 1024, "of a request's body")
	stream := flags.Bool("stream", false, "ask for a stream")
	header := flags.String("header", "", "one more request header, NAME: VALUE")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	request := requestBytes(*address, *model, *size, *stream, *header)
	var lock sync.Mutex
	var group sync.WaitGroup
	var found figures
	var all []time.Duration
	began := time.Now()
	end := began.Add(*duration)
	for range *connections {
		group.Add(1)
		go func() {
			defer group.Done()
			took, problem := ask(*address, request, *stream, end)
			lock.Lock()
			defer lock.Unlock()
			all = append(all, took...)
			if problem != nil {
				found.Failed++
				found.Problem = problem.Error()
			}
		}()
	}
	group.Wait()
	found.Seconds = time.Since(began).Seconds()
	found.Requests = len(all)
	if len(all) > 0 {
		slices.Sort(all)
		found.P50 = float64(all[len(all)/2].Nanoseconds()) / 1e3
		found.P99 = float64(all[len(all)*99/100].Nanoseconds()) / 1e3
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

// requestBytes is a whole request, made once.
func requestBytes(address, model string, size int, stream bool, header string) []byte {
	before := fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":"`, model, stream)
	const after = `"}]}`
	words := strings.Repeat("how many words has a prompt and who counts them ", 1+size/48)
	body := before + words[:max(0, size-len(before)-len(after))] + after
	if header != "" {
		header += "\r\n"
	}
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n%s\r\n%s", address, len(body), header, body)
}

// ask is one connection. It ends at the first thing that is not as it should be: nothing may fail here.
func ask(address string, request []byte, stream bool, end time.Time) ([]time.Duration, error) {
	var took []time.Duration
	connection, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return took, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(end.Add(5 * time.Second)); err != nil {
		return took, err
	}
	reader := bufio.NewReaderSize(connection, 64<<10)
	for time.Now().Before(end) {
		began := time.Now()
		if _, err := connection.Write(request); err != nil {
			return took, err
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return took, err
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return took, err
		}
		if response.StatusCode != http.StatusOK {
			return took, fmt.Errorf("status %d: %.300s", response.StatusCode, body)
		}
		if stream && !bytes.HasSuffix(body, []byte(done)) || !stream && !bytes.Contains(body, []byte(`"usage"`)) {
			return took, errors.New("the answer is not whole")
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
