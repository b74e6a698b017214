package node

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// image is what the table knows of images whose name matches a glob: which local program stands for it.
type image struct {
	Image      string            `json:"image"`
	Entrypoint []string          `json:"entrypoint"`
	Path       []string          `json:"path"` // folders in front of PATH
	Env        map[string]string `json:"env"`
	Keep       []string          `json:"keep"` // folders of its programs: seen by the container whatever volume covers them
}

// kept are the image's folders that a volume would cover: they are laid on top of it again, read-only. An image's own
// files lie where no volume is mounted; a checkout or a virtual environment may lie anywhere, in /tmp for one.
func (i *image) kept(mounts []mount) []mount {
	var again []mount
	for _, folder := range i.Keep {
		for _, m := range mounts {
			if within(folder, m.target) {
				again = append(again, mount{source: folder, target: folder, readOnly: true})
				break
			}
		}
	}
	return again
}

type imageTable []image

// readImages reads the table anew, so that an entry added while the cluster runs takes effect.
func readImages(path string) (imageTable, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var table imageTable
	if err := json.Unmarshal(text, &table); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return table, nil
}

// find returns the first entry whose glob matches the image's name, with or without its registry and tag.
func (t imageTable) find(name string) (*image, error) {
	candidates := imageNames(name)
	var known []string
	for i := range t {
		pattern := globPattern(t[i].Image)
		for _, candidate := range candidates {
			if pattern.MatchString(candidate) {
				return &t[i], nil
			}
		}
		known = append(known, t[i].Image)
	}
	return nil, fmt.Errorf("no local program stands for image %q: this node runs processes, and its image table knows %s",
		name, strings.Join(known, ", "))
}

func imageNames(name string) []string {
	names := []string{name}
	for _, prefix := range []string{"index.docker.io/", "docker.io/", "library/"} {
		if rest, found := strings.CutPrefix(names[len(names)-1], prefix); found {
			names = append(names, rest)
		}
	}
	for _, candidate := range names {
		bare, _, _ := strings.Cut(candidate, "@")
		if colon := strings.LastIndexByte(bare, ':'); colon > strings.LastIndexByte(bare, '/') {
			bare = bare[:colon]
		}
		names = append(names, bare)
	}
	return names
}

// globPattern knows only the star, which matches slashes too.
func globPattern(glob string) *regexp.Regexp {
	parts := strings.Split(glob, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
}
