package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const outputDelay = 2 * time.Second

// program is a command to be run in a Pod.
type program struct {
	argv   []string
	env    []string // NAME=value
	folder string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// process is a program that runs. exited is closed when it has ended; state is set by then.
type process struct {
	pid     int
	started time.Time
	exited  chan struct{}
	ended   time.Time
	state   *os.ProcessState // nil if waiting for it failed
	waitErr error
}

// startProcess starts a program in a network namespace, and wherever enter leads. It does so from a thread of its own,
// which takes on the namespaces, starts the program and lives as long as it: the kernel kills the program if the
// thread (that is: this node) ends, and no thread with foreign namespaces ever serves anything else.
func startProcess(network *os.File, enter func() error, run program) (*process, error) {
	type result struct {
		process *process
		err     error
	}
	started := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		running, command, err := startHere(network, enter, run)
		started <- result{running, err}
		if err != nil {
			return
		}
		running.waitErr = command.Wait()
		running.ended = time.Now()
		running.state = command.ProcessState
		// What the program started may have outlived it.
		_ = unix.Kill(-running.pid, unix.SIGKILL)
		close(running.exited)
	}()
	got := <-started
	return got.process, got.err
}

func startHere(network *os.File, enter func() error, run program) (*process, *exec.Cmd, error) {
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, nil, fmt.Errorf("enter the Pod's network: %w", err)
	}
	if err := enter(); err != nil {
		return nil, nil, err
	}
	if len(run.argv) == 0 {
		return nil, nil, errors.New("no command: neither the image table nor the container names one")
	}
	path, err := lookPath(run.argv[0], run.env)
	if err != nil {
		return nil, nil, err
	}
	folder := run.folder
	if folder == "" {
		folder = "/"
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, nil, err
	}
	command := &exec.Cmd{
		Path: path, Args: run.argv, Env: run.env, Dir: folder,
		Stdin: run.stdin, Stdout: run.stdout, Stderr: run.stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		// Something that it left behind may hold its output open.
		WaitDelay: outputDelay,
	}
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	return &process{pid: command.Process.Pid, started: time.Now(), exited: make(chan struct{})}, command, nil
}

// enterRunning leads into the mount namespace of a container's process.
func enterRunning(pid int) func() error {
	return func() error {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return unix.Setns(int(file.Fd()), unix.CLONE_NEWNS)
	}
}

func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, variable := range env {
		value, found := strings.CutPrefix(variable, "PATH=")
		if !found {
			continue
		}
		for _, folder := range filepath.SplitList(value) {
			path := filepath.Join(folder, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// exitCode is the container's: 128 and the signal's number when one ended it.
func (p *process) exitCode() (code, signal int32) {
	if p.state == nil {
		return 255, 0
	}
	if status, ok := p.state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int32(status.Signal()), int32(status.Signal())
	}
	return int32(p.state.ExitCode()), 0
}

// wait returns true if the process ended before the context did.
func (p *process) wait(ctx context.Context) bool {
	select {
	case <-p.exited:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *process) terminate() { _ = unix.Kill(p.pid, unix.SIGTERM) }

// kill ends the process and its process group.
func (p *process) kill() {
	_ = unix.Kill(-p.pid, unix.SIGKILL)
	_ = unix.Kill(p.pid, unix.SIGKILL)
}

// runToEnd runs a program beside a container's process and returns its exit code; it is killed when the context ends.
func runToEnd(ctx context.Context, network *os.File, pid int, run program) (int32, error) {
	running, err := startProcess(network, enterRunning(pid), run)
	if err != nil {
		return 0, err
	}
	if !running.wait(ctx) {
		running.kill()
		<-running.exited
		return 0, fmt.Errorf("%s: %w", run.argv[0], ctx.Err())
	}
	code, _ := running.exitCode()
	return code, nil
}
