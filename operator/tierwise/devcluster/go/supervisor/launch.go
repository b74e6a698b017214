package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"devcluster/hostpid"
)

// listenerFD is where the supervisor finds the listener that leads to the API server.
const listenerFD = 3

// UserNamespace is the variable that is set when the cluster was started by somebody else than root.
const UserNamespace = "TIERWISE_USER_NAMESPACE"

// Launch starts the supervisor in new network, mount and PID namespaces (and a user namespace, unless root) and
// returns once its pid file is written. Arguments: the configuration file and the number of an inherited
// file descriptor, a socket that listens outside.
func Launch(arguments []string) error {
	if len(arguments) != 2 {
		return errors.New("usage: devcluster launch CONFIG LISTENER-FD")
	}
	config, err := readConfig(arguments[0])
	if err != nil {
		return err
	}
	fd, err := strconv.Atoi(arguments[1])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(config.logFile("supervisor"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	command := exec.Command("/proc/self/exe", "supervise", arguments[0])
	command.Stdout, command.Stderr = log, log
	command.ExtraFiles = []*os.File{os.NewFile(uintptr(fd), "listener")}
	command.Dir = "/"
	command.Env = environment()
	command.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
	}
	if os.Geteuid() != 0 {
		command.Env = append(command.Env, UserNamespace+"=1")
		command.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("namespaces for the cluster: %w", err)
	}
	return writeFile(config.pidFile("supervisor"), strconv.Itoa(command.Process.Pid)+"\n")
}

// environment is what the cluster's programs inherit. A proxy or a kubeconfig of the user's would lead them astray.
func environment() []string {
	var kept []string
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"} {
		if value, found := os.LookupEnv(name); found {
			kept = append(kept, name+"="+value)
		}
	}
	return kept
}

// prepareMounts gives the supervisor's namespace a /proc and a resolv.conf of its own.
func prepareMounts(config *Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	hostProc := config.State + "/run/proc"
	if err := os.MkdirAll(hostProc, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/proc", hostProc, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /proc: %w", err)
	}
	if err := os.Setenv(hostpid.Environment, hostProc); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		// A bind mount follows symbolic links: the file that the link names is covered.
		if err := unix.Mount(config.Resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind resolv.conf: %w", err)
		}
	}
	return nil
}

// prepareNetwork makes the bridge that the Pods hang on. Nothing leads out of this namespace.
func prepareNetwork(config *Config) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "br0"
	// A fixed address: a bridge otherwise takes that of its lowest port, and neighbours' caches go stale.
	attributes.HardwareAddr = net.HardwareAddr{0x02, 0x42, 0x0a, 0xf4, 0x00, 0x01}
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	address, err := netlink.ParseAddr(config.Address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(bridge, address); err != nil {
		return fmt.Errorf("address of the bridge: %w", err)
	}
	return netlink.LinkSetUp(bridge)
}
