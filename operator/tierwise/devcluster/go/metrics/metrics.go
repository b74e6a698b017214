// Package metrics serves custom.metrics.k8s.io (of Pods) and external.metrics.k8s.io from PromQL queries, as
// prometheus-adapter does on users' clusters. Its rules come from a file and from every ConfigMap that carries the
// label tierwise.dev/metrics-rules, key config.yaml; both are read anew as they change.
package metrics

import (
	"context"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"k8s.io/metrics/pkg/apis/external_metrics"
	basecmd "sigs.k8s.io/custom-metrics-apiserver/pkg/cmd"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
)

const (
	rulesLabel = "tierwise.dev/metrics-rules"
	rulesKey   = "config.yaml"
)

var podResource = schema.GroupResource{Resource: "pods"}

type server struct {
	prometheus *prometheus
	file       string
	pods       corelisters.PodLister
	configMaps corelisters.ConfigMapLister

	mutex sync.Mutex
	state string // what rules were read from
	rules *ruleSet
}

// Run is the metrics API's main program.
func Run(arguments []string) error {
	adapter := &basecmd.AdapterBase{Name: "tierwise-metrics"}
	flags := adapter.Flags()
	address := flags.String("prometheus", "http://prometheus.monitoring.svc.cluster.local:9090", "the Prometheus that is asked")
	file := flags.String("rules", "", "rules in prometheus-adapter's format")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	config, err := adapter.ClientConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	pods := informers.NewSharedInformerFactory(client, 0)
	configMaps := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = rulesLabel }))
	s := &server{
		prometheus: newPrometheus(*address), file: *file, rules: newRuleSet(),
		pods: pods.Core().V1().Pods().Lister(), configMaps: configMaps.Core().V1().ConfigMaps().Lister(),
	}
	for _, factory := range []informers.SharedInformerFactory{pods, configMaps} {
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
	}
	adapter.WithCustomMetrics(s)
	adapter.WithExternalMetrics(s)
	return adapter.Run(ctx)
}

// current returns the rules, read anew if any source of them changed. A source that can not be read is left out and logged.
func (s *server) current() *ruleSet {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	state := ""
	if info, err := os.Stat(s.file); err == nil {
		state = info.ModTime().Format(time.RFC3339Nano)
	}
	sources, err := s.configMaps.List(labels.Everything())
	if err != nil {
		log.Print("rules: ", err)
	}
	slices.SortFunc(sources, func(a, b *corev1.ConfigMap) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	for _, source := range sources {
		state += " " + string(source.UID) + source.ResourceVersion
	}
	if state == s.state {
		return s.rules
	}
	rules := newRuleSet()
	if text, err := os.ReadFile(s.file); err == nil {
		if err := rules.add(text); err != nil {
			log.Printf("rules of %s: %v", s.file, err)
		}
	}
	for _, source := range sources {
		if err := rules.add([]byte(source.Data[rulesKey])); err != nil {
			log.Printf("rules of ConfigMap %s/%s: %v", source.Namespace, source.Name, err)
		}
	}
	s.state, s.rules = state, rules
	return rules
}

// ListAllMetrics names the metrics of Pods.
func (s *server) ListAllMetrics() []provider.CustomMetricInfo {
	var all []provider.CustomMetricInfo
	for _, name := range slices.Sorted(maps.Keys(s.current().pods)) {
		all = append(all, provider.CustomMetricInfo{GroupResource: podResource, Namespaced: true, Metric: name})
	}
	return all
}

// ListAllExternalMetrics names the external metrics.
func (s *server) ListAllExternalMetrics() []provider.ExternalMetricInfo {
	var all []provider.ExternalMetricInfo
	for _, name := range slices.Sorted(maps.Keys(s.current().external)) {
		all = append(all, provider.ExternalMetricInfo{Metric: name})
	}
	return all
}

// GetMetricByName returns the value of one Pod.
func (s *server) GetMetricByName(
	ctx context.Context, name types.NamespacedName, info provider.CustomMetricInfo, selector labels.Selector,
) (*custom_metrics.MetricValue, error) {
	values, err := s.ofPods(ctx, name.Namespace, []string{name.Name}, info, selector)
	if err != nil {
		return nil, err
	}
	if len(values) == 0 {
		return nil, provider.NewMetricNotFoundForError(info.GroupResource, info.Metric, name.Name)
	}
	return &values[0], nil
}

// GetMetricBySelector returns the values of the Pods that match; a Pod that Prometheus knows nothing of is left out.
func (s *server) GetMetricBySelector(
	ctx context.Context, namespace string, pods labels.Selector, info provider.CustomMetricInfo, selector labels.Selector,
) (*custom_metrics.MetricValueList, error) {
	found, err := s.pods.Pods(namespace).List(pods)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, pod := range found {
		names = append(names, pod.Name)
	}
	if len(names) == 0 {
		return &custom_metrics.MetricValueList{}, nil
	}
	values, err := s.ofPods(ctx, namespace, names, info, selector)
	if err != nil {
		return nil, err
	}
	return &custom_metrics.MetricValueList{Items: values}, nil
}

func (s *server) ofPods(
	ctx context.Context, namespace string, names []string, info provider.CustomMetricInfo, selector labels.Selector,
) ([]custom_metrics.MetricValue, error) {
	metric := s.current().pods[info.Metric]
	if metric == nil || info.GroupResource != podResource {
		return nil, provider.NewMetricNotFoundError(info.GroupResource, info.Metric)
	}
	matchers, err := selectorMatchers(selector)
	if err != nil {
		return nil, err
	}
	matchers = append([]string{equals(metric.namespaceLabel, namespace), oneOf(metric.podLabel, names)}, matchers...)
	samples, err := s.ask(ctx, metric, matchers, metric.podLabel)
	if err != nil {
		return nil, err
	}
	var values []custom_metrics.MetricValue
	for _, sample := range samples {
		name := sample.labels[metric.podLabel]
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("the query of %s answers for %q, which was not asked: does it keep the label %s?",
				info.Metric, name, metric.podLabel)
		}
		values = append(values, custom_metrics.MetricValue{
			DescribedObject: custom_metrics.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name, APIVersion: "/v1"},
			Metric:          custom_metrics.MetricIdentifier{Name: info.Metric},
			Timestamp:       metav1.NewTime(sample.time), Value: quantity(sample.value),
		})
	}
	return values, nil
}

// GetExternalMetric returns every series that the rule's query gives.
func (s *server) GetExternalMetric(
	ctx context.Context, namespace string, selector labels.Selector, info provider.ExternalMetricInfo,
) (*external_metrics.ExternalMetricValueList, error) {
	metric := s.current().external[info.Metric]
	if metric == nil {
		return nil, provider.NewMetricNotFoundError(schema.GroupResource{Resource: "external"}, info.Metric)
	}
	matchers, err := selectorMatchers(selector)
	if err != nil {
		return nil, err
	}
	if metric.namespaced {
		matchers = append([]string{equals(metric.namespaceLabel, namespace)}, matchers...)
	}
	samples, err := s.ask(ctx, metric, matchers, metric.namespaceLabel)
	if err != nil {
		return nil, err
	}
	list := &external_metrics.ExternalMetricValueList{}
	for _, sample := range samples {
		list.Items = append(list.Items, external_metrics.ExternalMetricValue{
			MetricName: info.Metric, MetricLabels: sample.labels,
			Timestamp: metav1.NewTime(sample.time), Value: quantity(sample.value),
		})
	}
	return list, nil
}

func (s *server) ask(ctx context.Context, metric *metric, matchers []string, groupBy string) ([]sample, error) {
	query, err := metric.promQL(matchers, groupBy)
	if err != nil {
		return nil, err
	}
	samples, err := s.prometheus.query(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("metric %s: %w", metric.name, err)
	}
	return samples, nil
}

// quantity keeps thousandths, the finest that the metrics APIs' consumers read.
func quantity(value float64) resource.Quantity {
	return *resource.NewMilliQuantity(int64(value*1000), resource.DecimalSI)
}
