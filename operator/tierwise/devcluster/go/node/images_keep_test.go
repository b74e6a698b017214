package node

import (
	"reflect"
	"testing"
)

func TestProgramsAreLaidOverTheVolumesThatCoverThem(t *testing.T) {
	entry := &image{Keep: []string{"/tmp/clone/.venv", "/usr/lib/python", "/tmpfiles"}}
	volumes := []mount{{source: "/pods/a/tmp", target: "/tmp"}, {source: "/pods/a/data", target: "/data"}}
	want := []mount{{source: "/tmp/clone/.venv", target: "/tmp/clone/.venv", readOnly: true}}
	if got := entry.kept(volumes); !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if got := entry.kept(nil); got != nil {
		t.Fatalf("got %v, want nothing", got)
	}
}
