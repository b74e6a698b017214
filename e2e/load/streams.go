package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// record is one request as its client saw it; times are Unix seconds.
type record struct {
	Client   int     `json:"client"`
	Stream   bool    `json:"stream"`
	Marked   bool    `json:"marked"` // with the header of -header
	Kept     bool    `json:"kept"`   // the client keeps its connection
	Reused   bool    `json:"reused"` // and this request went over one that it had
	Gateway  string  `json:"gateway"`
	Begin    float64 `json:"begin"`
	First    float64 `json:"first"` // the answer's first body byte; 0: there was none
	End      float64 `json:"end"`
	Status   int     `json:"status"`
	Tier     string  `json:"tier"`
	Attempts string  `json:"attempts"`
	ID       string  `json:"id"` // of the answer: the upstream made it from the request id that it saw
	Bytes    int     `json:"bytes"`
	Whole    bool    `json:"whole"` // the stream ended with [DONE], the answer with its usage
	Error    string  `json:"error,omitempty"`
}

var (
	answerID = regexp.MustCompile(`"id":\s*"([^"]+)"`)
	pause    = 250 * time.Millisecond // after a failure, so that a broken gateway is not flooded
)

type load struct {
	url, model   string
	least, most  int
	began, until time.Time
	ramp         time.Duration
	clients      int
	timeout      time.Duration
	dial         func(context.Context, string, string) (net.Conn, error)
	fresh        *http.Transport
	header       [2]string
	lock         sync.Mutex
	out          *json.Encoder
}

// streams holds a number of streams open: a client begins its next as soon as one ends. Half of the clients open a
// connection for each request, the others keep theirs as long as the gateway does. Nothing is ever tried twice.
func streams(arguments []string) error {
	flags := flag.NewFlagSet("streams", flag.ExitOnError)
	host := flags.String("host", "", "name of the gateways; each connection goes to one of its addresses of that moment")
	port := flags.String("port", "8080", "of the gateways")
	model := flags.String("model", "", "asked for")
	count := flags.Int("streams", 200, "at the same time")
	whole := flags.Int("whole", 10, "clients beside them that ask for whole answers")
	least := flags.Int("least-tokens", 120, "of an answer")
	most := flags.Int("most-tokens", 400, "of an answer")
	duration := flags.Duration("duration", time.Minute, "until no request is begun")
	timeout := flags.Duration("timeout", time.Minute, "of one request")
	header := flags.String("header", "", "NAME:VALUE that every fourth client sends, of either kind")
	output := flags.String("output", "", "file for the records")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	file, err := os.Create(*output)
	if err != nil {
		return err
	}
	defer file.Close()
	dial := dialer(*host, *port)
	l := &load{
		url: fmt.Sprintf("http://%s/v1/chat/completions", net.JoinHostPort(*host, *port)), model: *model,
		least: *least, most: *most, began: time.Now(), until: time.Now().Add(*duration), ramp: 3 * time.Second,
		clients: *count + *whole, timeout: *timeout, dial: dial,
		fresh: &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		out:   json.NewEncoder(file),
	}
	l.header[0], l.header[1], _ = strings.Cut(*header, ":")
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	var group sync.WaitGroup
	for number := range l.clients {
		group.Add(1)
		go func() {
			defer group.Done()
			l.client(stop, number, number < *count)
		}()
	}
	group.Wait()
	return nil
}

// dialer takes one address at random and no second one, so that a gateway that is named and does not answer is noticed.
func dialer(host, port string) func(context.Context, string, string) (net.Conn, error) {
	resolver := &net.Resolver{PreferGo: true}
	connect := &net.Dialer{Timeout: 5 * time.Second}
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		found, err := resolver.LookupHost(ctx, host)
		if err != nil {
			return nil, err
		}
		return connect.DialContext(ctx, network, net.JoinHostPort(found[rand.IntN(len(found))], port))
	}
}

func (l *load) client(stop context.Context, number int, stream bool) {
	keeps := number%2 == 1
	transport := l.fresh
	if keeps {
		transport = &http.Transport{DialContext: l.dial, MaxIdleConnsPerHost: 1, DisableCompression: true}
	}
	// Streams that began together would end together.
	time.Sleep(l.ramp * time.Duration(number) / time.Duration(l.clients))
	for time.Now().Before(l.until) && stop.Err() == nil {
		r := record{Client: number, Stream: stream, Kept: keeps, Marked: l.header[0] != "" && number%8 < 2, Begin: now()}
		if err := l.ask(transport, &r); err != nil {
			r.Error = err.Error()
		}
		r.End = now()
		l.lock.Lock()
		_ = l.out.Encode(r)
		l.lock.Unlock()
		if !r.Whole {
			time.Sleep(pause)
		}
	}
}

func (l *load) ask(transport *http.Transport, r *record) error {
	body, err := json.Marshal(map[string]any{
		"model": l.model, "messages": []map[string]string{{"role": "user", "content": "Tell a story of some length."}},
		"max_tokens": l.least + rand.IntN(l.most-l.least+1), "ignore_eos": true, "stream": r.Stream,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		r.Gateway, r.Reused = info.Conn.RemoteAddr().String(), info.Reused
	}})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	// Without it the library would send the request a second time over a new connection when a kept one is closed.
	request.GetBody = nil
	request.Header.Set("content-type", "application/json")
	if r.Marked {
		request.Header.Set(l.header[0], l.header[1])
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	r.Status = response.StatusCode
	r.Tier, r.Attempts = response.Header.Get("x-tierwise-tier"), response.Header.Get("x-tierwise-attempts")
	return l.read(response.Body, r)
}

// read takes in the answer: its first bytes for the id, its last for whether it is whole.
func (l *load) read(body io.Reader, r *record) error {
	const kept = 1024
	var head, tail []byte
	buffer := make([]byte, 16<<10)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			if r.First == 0 {
				r.First = now()
			}
			r.Bytes += n
			if len(head) < kept {
				head = append(head, buffer[:min(n, kept-len(head))]...)
			}
			tail = append(tail, buffer[:n]...)
			tail = tail[max(0, len(tail)-kept):]
		}
		if err == nil {
			continue
		}
		if match := answerID.FindSubmatch(head); match != nil {
			r.ID = string(match[1])
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		switch {
		case r.Status != http.StatusOK:
			return fmt.Errorf("status %d: %.300s", r.Status, head)
		case r.Stream:
			r.Whole = bytes.HasSuffix(bytes.TrimSpace(tail), []byte("data: [DONE]"))
		default:
			r.Whole = bytes.Contains(tail, []byte(`"usage"`))
		}
		if !r.Whole {
			return errors.New("the answer is not whole")
		}
		return nil
	}
}

func now() float64 {
	return float64(time.Now().UnixMicro()) / 1e6
}
