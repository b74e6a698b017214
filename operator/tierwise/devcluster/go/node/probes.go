package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
)

// tally counts a probe's results against its thresholds, as the kubelet's prober does.
type tally struct {
	success, failure int32 // thresholds
	last             bool
	run              int32 // results in a row that equal last
	passed           bool  // the verdict so far
}

func newTally(spec *corev1.Probe, initially bool) *tally {
	return &tally{success: max(spec.SuccessThreshold, 1), failure: max(spec.FailureThreshold, 1), passed: initially}
}

// observe takes one result and says whether the verdict holds now, and whether a threshold was reached by it.
func (t *tally) observe(ok bool) (passed, decided bool) {
	if t.run > 0 && t.last == ok {
		t.run++
	} else {
		t.last, t.run = ok, 1
	}
	threshold := t.failure
	if ok {
		threshold = t.success
	}
	if t.run < threshold {
		return t.passed, false
	}
	t.passed = ok
	return ok, true
}

// probeLoop runs one probe until the context ends, and hands every decided verdict to act, with the reason of a failure.
func (c *container) probeLoop(ctx context.Context, kind string, spec *corev1.Probe, act func(passed bool, reason error)) {
	counts := newTally(spec, kind == "Liveness")
	period := time.Duration(max(spec.PeriodSeconds, 1)) * time.Second
	wait := time.Duration(spec.InitialDelaySeconds) * time.Second
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := c.probeOnce(ctx, spec)
		if ctx.Err() != nil {
			return
		}
		passed, decided := counts.observe(err == nil)
		if err != nil {
			c.worker.event(corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe of container %s failed: %v", kind, c.spec.Name, err))
		}
		if decided {
			act(passed, err)
		}
		wait = period
	}
}

func (c *container) probeOnce(ctx context.Context, spec *corev1.Probe) error {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case spec.HTTPGet != nil:
		return c.httpGet(ctx, spec.HTTPGet)
	case spec.TCPSocket != nil:
		return c.tcpSocket(ctx, spec.TCPSocket)
	case spec.GRPC != nil:
		service := ""
		if spec.GRPC.Service != nil {
			service = *spec.GRPC.Service
		}
		host := c.worker.address()
		result, output, err := grpcprobe.New().Probe(host, service, int(spec.GRPC.Port), timeout, grpcprobe.ProbeOptions{})
		if err == nil && result != probe.Success {
			err = errors.New(output)
		}
		return err
	case spec.Exec != nil:
		code, err := c.exec(ctx, program{argv: spec.Exec.Command})
		if err == nil && code != 0 {
			err = fmt.Errorf("%s exited with %d", spec.Exec.Command[0], code)
		}
		return err
	default:
		return errors.New("a probe without an action")
	}
}

var probeClient = &http.Client{
	// As the kubelet: certificates are not checked, a redirect counts as an answer.
	Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, Proxy: nil,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (c *container) httpGet(ctx context.Context, action *corev1.HTTPGetAction) error {
	port, err := c.port(action.Port)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = c.worker.address()
	}
	address, err := url.Parse(action.Path)
	if err != nil {
		return err
	}
	address.Scheme = "http"
	if action.Scheme == corev1.URISchemeHTTPS {
		address.Scheme = "https"
	}
	address.Host = net.JoinHostPort(host, port)
	if address.Path == "" {
		address.Path = "/"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "kube-probe/tierwise")
	for _, header := range action.HTTPHeaders {
		if http.CanonicalHeaderKey(header.Name) == "Host" {
			request.Host = header.Value
		}
		request.Header.Add(header.Name, header.Value)
	}
	response, err := probeClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 512))
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("HTTP status %d: %s", response.StatusCode, body)
	}
	return nil
}

func (c *container) tcpSocket(ctx context.Context, action *corev1.TCPSocketAction) error {
	port, err := c.port(action.Port)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = c.worker.address()
	}
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	return connection.Close()
}

// port finds the number behind a name.
func (c *container) port(port intstr.IntOrString) (string, error) {
	if port.Type == intstr.Int {
		return strconv.Itoa(port.IntValue()), nil
	}
	for _, candidate := range c.spec.Ports {
		if candidate.Name == port.StrVal {
			return strconv.Itoa(int(candidate.ContainerPort)), nil
		}
	}
	if _, err := strconv.Atoi(port.StrVal); err == nil {
		return port.StrVal, nil
	}
	return "", fmt.Errorf("container %s has no port named %s", c.spec.Name, port.StrVal)
}
