package node

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// userNamespace is the variable that the supervisor sets when it was started by somebody else than root.
const userNamespace = "TIERWISE_USER_NAMESPACE"

// mount is a folder or file that a container sees at a place of its own.
type mount struct {
	source   string
	target   string
	readOnly bool
}

// rootFS is what a container's file system is made of: the machine's own, read through an overlay whose writes are
// kept in memory and thrown away with the container, and the Pod's volumes on top.
type rootFS struct {
	scratch  string // an empty folder to hang the mounts on
	hostname string
	address  string
	resolv   string // text of /etc/resolv.conf
	mounts   []mount
}

// enter replaces the calling thread's file system; the thread must be locked and never used for anything else.
func (r *rootFS) enter() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	_ = unix.Sethostname([]byte(r.hostname))
	root, err := r.overlay()
	if err != nil {
		return err
	}
	if err := bindMachine(root, r.scratch); err != nil {
		return err
	}
	if err := unix.Mount("shm", filepath.Join(root, "dev/shm"), "tmpfs", 0, "mode=1777"); err != nil {
		return fmt.Errorf("/dev/shm: %w", err)
	}
	// Outer mounts first, so that one inside another is not covered.
	sort.SliceStable(r.mounts, func(i, j int) bool { return len(r.mounts[i].target) < len(r.mounts[j].target) })
	for _, m := range r.mounts {
		if err := bindVolume(root, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := r.writeNames(root); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

func (r *rootFS) overlay() (string, error) {
	if err := unix.Mount("scratch", r.scratch, "tmpfs", 0, "mode=755"); err != nil {
		return "", fmt.Errorf("scratch space: %w", err)
	}
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(r.scratch, name), 0o755); err != nil {
			return "", err
		}
	}
	root := filepath.Join(r.scratch, "root")
	err := overlay("/", filepath.Join(r.scratch, "upper"), filepath.Join(r.scratch, "work"), root)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// In a user namespace the kernel refuses to show a folder without the mounts that lie on it.
		err = r.overlayPieces(root)
	}
	if err != nil {
		return "", fmt.Errorf("overlay over the machine's file system: %w", err)
	}
	return root, nil
}

func overlay(lower, upper, work, target string) error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if os.Getenv(userNamespace) != "" {
		options += ",userxattr"
	}
	return unix.Mount("overlay", target, "overlay", 0, options)
}

// overlayPieces lays an overlay over each folder of the machine's root; one with mounts below is bound as it is.
func (r *rootFS) overlayPieces(root string) error {
	if err := unix.Mount("root", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		target := filepath.Join(root, name)
		switch {
		case entry.Type()&os.ModeSymlink != 0:
			link, err := os.Readlink("/" + name)
			if err != nil {
				return err
			}
			if err := os.Symlink(link, target); err != nil {
				return err
			}
		case entry.IsDir():
			upper, work := filepath.Join(r.scratch, "pieces", name, "upper"), filepath.Join(r.scratch, "pieces", name, "work")
			for _, folder := range []string{upper, work, target} {
				if err := os.MkdirAll(folder, 0o755); err != nil {
					return err
				}
			}
			// An overlay's root has its upper folder's mode: /tmp must stay everybody's.
			if info, err := entry.Info(); err == nil {
				_ = os.Chmod(upper, info.Mode())
			}
			if overlay("/"+name, upper, work, target) != nil {
				_ = unix.Mount("/"+name, target, "", unix.MS_BIND|unix.MS_REC, "")
			}
		}
	}
	return nil
}

// bindMachine brings the machine's other mounts into the new root: the overlay shows only the root's own files.
func bindMachine(root, scratch string) error {
	file, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer file.Close()
	var points []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// Field 5 is the mount point, with blanks as octal escapes.
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			points = append(points, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	system := []string{"/proc", "/sys", "/dev"}
	for _, point := range system {
		if err := unix.Mount(point, root+point, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", point, err)
		}
	}
	for _, point := range points {
		if point == "/" || within(point, append(system, scratch, "/etc/resolv.conf", "/etc/hosts", "/etc/hostname")...) {
			continue
		}
		// Best effort: a mount that can not be passed on (of a tool, or not ours to see) is not part of any image.
		_ = unix.Mount(point, root+point, "", unix.MS_BIND, "")
	}
	return nil
}

func within(path string, folders ...string) bool {
	for _, folder := range folders {
		if path == folder || strings.HasPrefix(path, folder+"/") {
			return true
		}
	}
	return false
}

func bindVolume(root string, m mount) error {
	info, err := os.Stat(m.source)
	if err != nil {
		return err
	}
	target, err := insideRoot(root, m.target)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else {
		if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			var file *os.File
			if file, err = os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
				err = file.Close()
			}
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(m.source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if m.readOnly {
		return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return nil
}

// insideRoot follows the links on the way to a place in the new root, absolute ones from the new root: /var/run is
// commonly a link to /run.
func insideRoot(root, path string) (string, error) {
	resolved := "/"
	parts := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for links := 0; len(parts) > 0; {
		next := filepath.Join(resolved, parts[0])
		parts = parts[1:]
		link, err := os.Readlink(root + next)
		if err != nil {
			resolved = next
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("too many links in %s", path)
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(resolved, link)
		}
		parts = append(strings.Split(strings.Trim(filepath.Clean(link), "/"), "/"), parts...)
		resolved = "/"
	}
	return root + resolved, nil
}

func (r *rootFS) writeNames(root string) error {
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n%s\t%s\n", r.address, r.hostname)
	for name, text := range map[string]string{"resolv.conf": r.resolv, "hosts": hosts, "hostname": r.hostname + "\n"} {
		path := filepath.Join(root, "etc", name)
		mounted := false
		for _, m := range r.mounts {
			mounted = mounted || m.target == "/etc/"+name
		}
		if mounted {
			continue
		}
		// It may be a link to a file elsewhere.
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
