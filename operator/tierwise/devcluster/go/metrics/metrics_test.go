package metrics

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

const configuration = `
rules:
  - seriesQuery: 'vllm:num_requests_waiting{namespace!="",pod!=""}'
    resources: {overrides: {kubernetes_namespace: {resource: namespace}, pod: {resource: pod}}}
    name: {as: queue_depth}
    metricsQuery: 'sum(avg_over_time(<<.Series>>{<<.LabelMatchers>>}[5s])) by (<<.GroupBy>>)'
externalRules:
  - seriesQuery: 'requests'
    resources: {namespaced: false}
`

func TestRulesInPrometheusAdaptersFormat(t *testing.T) {
	rules := newRuleSet()
	if err := rules.add([]byte(configuration)); err != nil {
		t.Fatal(err)
	}
	metric := rules.pods["queue_depth"]
	if metric == nil {
		t.Fatalf("no metric of that name: %v", rules.pods)
	}
	matchers := []string{equals(metric.namespaceLabel, "a"), oneOf(metric.podLabel, []string{"y.1", "x"})}
	query, err := metric.promQL(matchers, metric.podLabel)
	want := `sum(avg_over_time(vllm:num_requests_waiting{kubernetes_namespace="a",pod=~"x|y\\.1"}[5s])) by (pod)`
	if err != nil || query != want {
		t.Errorf("%s %v, wanted %s", query, err, want)
	}
	external := rules.external["requests"]
	if external == nil || external.namespaced {
		t.Errorf("external rule: %+v", external)
	}
}

func TestARuleWithoutOneSeriesIsRefused(t *testing.T) {
	for _, text := range []string{
		`rules: [{seriesQuery: '{__name__=~"x.*"}'}]`,
		`rules: [{seriesQuery: 'x', name: {matches: "(.*)", as: "${1}_per_second"}}]`,
		`rules: [{seriesQuery: 'x', metricsQuery: '<<.Series'}]`,
	} {
		if err := newRuleSet().add([]byte(text)); err == nil {
			t.Errorf("accepted: %s", text)
		}
	}
}

func TestSelectorMatchers(t *testing.T) {
	selector, err := labels.Parse("a=1,b in (x,y),c!=2,d,!e")
	if err != nil {
		t.Fatal(err)
	}
	matchers, err := selectorMatchers(selector)
	want := `a="1",b=~"x|y",c!~"2",d!="",e=""`
	if got := strings.Join(matchers, ","); err != nil || got != want {
		t.Errorf("%s %v, wanted %s", got, err, want)
	}
}

func TestParseVectorLeavesOutWhatIsNoNumber(t *testing.T) {
	samples, err := parseVector([]byte(`{"status":"success","data":{"resultType":"vector","result":[
		{"metric":{"pod":"a"},"value":[1.5,"2.25"]},{"metric":{"pod":"b"},"value":[1.5,"NaN"]}]}}`))
	if err != nil || len(samples) != 1 || samples[0].value != 2.25 || samples[0].labels["pod"] != "a" {
		t.Errorf("%v %v", samples, err)
	}
	if value := quantity(samples[0].value); value.MilliValue() != 2250 {
		t.Errorf("quantity %v", value)
	}
	for _, text := range []string{
		`{"status":"error","error":"no"}`, `{"status":"success","data":{"resultType":"scalar","result":[]}}`, `<html>`,
	} {
		if _, err := parseVector([]byte(text)); err == nil {
			t.Errorf("accepted: %s", text)
		}
	}
}
