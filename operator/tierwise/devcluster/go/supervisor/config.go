// Package supervisor starts, watches and ends the programs of one cluster inside namespaces of their own.
package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Config is what Python writes before it launches the supervisor.
type Config struct {
	Name string `json:"name"`
	// State is the cluster's folder: logs, pid files, the control socket.
	State string `json:"state"`
	// Address is the bridge's own address, with the length of the Pod network's prefix.
	Address string `json:"address"`
	// Resolv is the resolv.conf for programs that enter the cluster's namespaces.
	Resolv string `json:"resolv"`
	// Kubeconfig is the administrator's, by the address inside.
	Kubeconfig string `json:"kubeconfig"`
	// APIAddress is where the API server listens inside; the inherited listener leads there.
	APIAddress string      `json:"apiAddress"`
	Components []Component `json:"components"`
}

// Component is one program that must run.
type Component struct {
	Name string            `json:"name"`
	Argv []string          `json:"argv"`
	Env  map[string]string `json:"env"`
	// Ready is a URL that answers 200 when the component serves; empty means: ready once started.
	Ready string `json:"ready"`
	// Needs names the components that must be ready before this one is started for the first time.
	Needs []string `json:"needs"`
}

func readConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config := &Config{}
	if err := json.Unmarshal(text, config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

func (c *Config) pidFile(component string) string {
	return filepath.Join(c.State, "run", component+".pid")
}

func (c *Config) logFile(component string) string {
	return filepath.Join(c.State, "logs", component+".log")
}

// writeFile replaces a small file at once, so that a reader never sees half of it.
func writeFile(path, text string) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
