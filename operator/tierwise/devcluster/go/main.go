// Command devcluster is every program of Tierwise's development cluster in one binary: the Kubernetes control
// plane as upstream ships it, CoreDNS with the plugins that a cluster needs, and what is ours: the supervisor,
// the process node and the metrics API. Its first argument says which one to be.
package main

import (
	"fmt"
	"os"

	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	// The plugins of CoreDNS that the Corefile names.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"

	// What the upstream mains import for their logs and metrics.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	"devcluster/metrics"
	"devcluster/node"
	"devcluster/supervisor"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: devcluster COMPONENT [ARGUMENT...]")
		os.Exit(2)
	}
	component := os.Args[1]
	os.Args = os.Args[1:]
	switch component {
	case "launch":
		exit(supervisor.Launch(os.Args[1:]))
	case "supervise":
		exit(supervisor.Supervise(os.Args[1:]))
	case "enter":
		exit(supervisor.Enter(os.Args[1:]))
	case "node":
		exit(node.Run(os.Args[1:]))
	case "metrics":
		exit(metrics.Run(os.Args[1:]))
	case "coredns":
		coremain.Run()
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		run(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		run(controllermanager.NewControllerManagerCommand())
	case "kube-scheduler":
		run(scheduler.NewSchedulerCommand())
	default:
		exit(fmt.Errorf("unknown component %q", component))
	}
}

func run(command *cobra.Command) { os.Exit(cli.Run(command)) }

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
