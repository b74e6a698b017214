// Package hostpid translates process ids of the cluster's PID namespace into those that the machine sees.
//
// The supervisor is process 1 of its own PID namespace, so that nothing outlives it. A person or a test outside
// needs the other number. The supervisor keeps the machine's /proc mounted at HostProc; a pidfd's entry there
// shows the process id as that mount's namespace sees it.
package hostpid

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Environment is the variable that holds the folder where the machine's /proc is mounted.
const Environment = "TIERWISE_HOST_PROC"

// Of returns the machine's process id of a process of this namespace.
func Of(pid int) (int, error) {
	folder := os.Getenv(Environment)
	if folder == "" {
		return pid, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	file, err := os.Open(fmt.Sprintf("%s/self/fdinfo/%d", folder, fd))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), "Pid:"); found {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("no Pid line for the pidfd of %d", pid)
}
