package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// request is what Python asks over the control socket: one a connection, as JSON. For "forward" a listening socket
// comes along as a file descriptor.
type request struct {
	Operation string `json:"operation"` // status, lookup or forward
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      string `json:"port"` // a number or a name
}

type reply struct {
	Error      string            `json:"error,omitempty"`
	Address    string            `json:"address,omitempty"`
	Components []componentStatus `json:"components,omitempty"`
}

type componentStatus struct {
	Name     string  `json:"name"`
	PID      int     `json:"pid"`
	Ready    bool    `json:"ready"`
	Restarts int     `json:"restarts"`
	Seconds  float64 `json:"seconds"` // since the present process was started
}

func (s *supervisor) serveControl(ctx context.Context) error {
	path := filepath.Join(s.config.State, "run", "control.sock")
	_ = os.Remove(path)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			connection, err := listener.AcceptUnix()
			if err != nil {
				log.Print("control socket: ", err)
				return
			}
			go s.answer(ctx, connection)
		}
	}()
	return nil
}

func (s *supervisor) answer(ctx context.Context, connection *net.UnixConn) {
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(10 * time.Second))
	message, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, controlLength, _, _, err := connection.ReadMsgUnix(message, control)
	if err != nil {
		log.Print("control request: ", err)
		return
	}
	answer, err := s.handle(ctx, message[:n], control[:controlLength])
	if err != nil {
		answer = &reply{Error: err.Error()}
	}
	if err := json.NewEncoder(connection).Encode(answer); err != nil {
		log.Print("control reply: ", err)
	}
}

func (s *supervisor) handle(ctx context.Context, message, control []byte) (*reply, error) {
	asked := request{}
	if err := json.Unmarshal(message, &asked); err != nil {
		return nil, err
	}
	target := serviceTarget{asked.Namespace, asked.Service, asked.Port}
	switch asked.Operation {
	case "status":
		return &reply{Components: s.status()}, nil
	case "lookup":
		return &reply{Address: s.relay.forwardAddress(target)}, nil
	case "forward":
		listener, err := receivedListener(control)
		if err != nil {
			return nil, err
		}
		return &reply{Address: s.relay.forward(ctx, listener, target)}, nil
	default:
		return nil, fmt.Errorf("unknown operation %q", asked.Operation)
	}
}

// status asks every component at once, so that a dead one costs its time-out only once.
func (s *supervisor) status() []componentStatus {
	statuses := make([]componentStatus, len(s.config.Components))
	var group sync.WaitGroup
	for i, configured := range s.config.Components {
		group.Go(func() {
			component := s.components[configured.Name]
			ready := s.ready(component)
			component.mutex.Lock()
			defer component.mutex.Unlock()
			statuses[i] = componentStatus{Name: component.Name, PID: component.hostPID, Ready: ready, Restarts: component.restarts}
			if component.pid != 0 {
				statuses[i].Seconds = time.Since(component.started).Seconds()
			}
		})
	}
	group.Wait()
	return statuses
}

func receivedListener(control []byte) (net.Listener, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		fds, err := unix.ParseUnixRights(&message)
		if err != nil {
			return nil, err
		}
		if len(fds) == 1 {
			file := os.NewFile(uintptr(fds[0]), "listener")
			defer file.Close()
			return net.FileListener(file)
		}
	}
	return nil, errors.New("no socket came with the request")
}
