package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Enter replaces this process by a program inside the network and mount namespaces of another process:
// devcluster enter PID PROGRAM [ARGUMENT...]. Only root can use it, as joining a user namespace takes a process of
// one thread, which no Go program is; nsenter does that.
func Enter(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: devcluster enter PID PROGRAM [ARGUMENT...]")
	}
	folder, err := os.Getwd()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, namespace := range []string{"net", "mnt"} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%s/ns/%s", arguments[0], namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter the %s namespace of %s: %w", namespace, arguments[0], err)
		}
	}
	if err := os.Chdir(folder); err != nil {
		return err
	}
	program, err := exec.LookPath(arguments[1])
	if err != nil {
		return err
	}
	return syscall.Exec(program, arguments[1:], os.Environ())
}
