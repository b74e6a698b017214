package node

import (
	"bytes"
	"context"
	"io"
	"os"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
)

const followInterval = 100 * time.Millisecond

// readLog opens the log of the container's present or last process, or of the one before it.
func (c *container) readLog(ctx context.Context, options api.ContainerLogOpts) (io.ReadCloser, error) {
	c.worker.mutex.Lock()
	restart := int(c.status.RestartCount)
	c.worker.mutex.Unlock()
	if options.Previous {
		restart--
	}
	file, err := os.Open(c.logFile(restart))
	if err != nil {
		return nil, errdefs.NotFoundf("container %s has no such log", c.spec.Name)
	}
	if options.Tail > 0 {
		if err := seekTail(file, options.Tail); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	var reader io.Reader = file
	if options.Follow && !options.Previous {
		reader = &follower{ctx: ctx, file: file, running: func() bool {
			c.worker.mutex.Lock()
			defer c.worker.mutex.Unlock()
			return c.process != nil && int(c.status.RestartCount) == restart
		}}
	}
	if options.LimitBytes > 0 {
		reader = io.LimitReader(reader, int64(options.LimitBytes))
	}
	return struct {
		io.Reader
		io.Closer
	}{reader, file}, nil
}

// seekTail moves to the beginning of the last lines, reading backwards.
func seekTail(file *os.File, lines int) error {
	const block = 64 * 1024
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buffer := make([]byte, block)
	position := end
	for position > 0 {
		size := min(int64(block), position)
		position -= size
		if _, err := file.ReadAt(buffer[:size], position); err != nil {
			return err
		}
		for rest := buffer[:size]; ; {
			newline := bytes.LastIndexByte(rest, '\n')
			if newline < 0 {
				break
			}
			// The newline at the very end closes the last line and starts none.
			if position+int64(newline) != end-1 {
				lines--
			}
			if lines == 0 {
				_, err := file.Seek(position+int64(newline)+1, io.SeekStart)
				return err
			}
			rest = rest[:newline]
		}
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

// follower reads on at the end of a log as long as the process runs.
type follower struct {
	ctx     context.Context
	file    *os.File
	running func() bool
}

func (f *follower) Read(into []byte) (int, error) {
	for {
		running := f.running() // asked before reading, so that the last words are not missed
		n, err := f.file.Read(into)
		if n > 0 || err != io.EOF {
			return n, err
		}
		if !running || !sleep(f.ctx, followInterval) {
			return 0, io.EOF
		}
	}
}
