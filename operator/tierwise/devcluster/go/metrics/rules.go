package metrics

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"text/template"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/yaml"
)

// ruleFile is the part of prometheus-adapter's configuration that this server understands, so that the rules which a
// user gives to prometheus-adapter are the rules that are tested here. A rule must name one series.
type ruleFile struct {
	Rules         []rule `json:"rules"`
	ExternalRules []rule `json:"externalRules"`
}

type rule struct {
	SeriesQuery string `json:"seriesQuery"`
	Resources   struct {
		Overrides map[string]struct {
			Resource string `json:"resource"`
		} `json:"overrides"`
		Namespaced *bool `json:"namespaced"`
	} `json:"resources"`
	Name struct {
		Matches string `json:"matches"`
		As      string `json:"as"`
	} `json:"name"`
	MetricsQuery string `json:"metricsQuery"`
}

// metric is a rule made ready to be asked.
type metric struct {
	name, series   string
	namespaceLabel string
	podLabel       string
	namespaced     bool
	query          *template.Template
}

type ruleSet struct {
	pods     map[string]*metric
	external map[string]*metric
}

func newRuleSet() *ruleSet {
	return &ruleSet{pods: map[string]*metric{}, external: map[string]*metric{}}
}

// add reads one configuration; a later rule of the same name wins.
func (s *ruleSet) add(text []byte) error {
	file := ruleFile{}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return err
	}
	for _, part := range []struct {
		rules []rule
		into  map[string]*metric
	}{{file.Rules, s.pods}, {file.ExternalRules, s.external}} {
		for _, r := range part.rules {
			made, err := r.metric()
			if err != nil {
				return err
			}
			part.into[made.name] = made
		}
	}
	return nil
}

func (r *rule) metric() (*metric, error) {
	series, selector, _ := strings.Cut(r.SeriesQuery, "{")
	if series == "" {
		return nil, fmt.Errorf("seriesQuery %q must begin with the name of one series", r.SeriesQuery)
	}
	m := &metric{
		name: series, series: series, namespaceLabel: "namespace", podLabel: "pod",
		namespaced: r.Resources.Namespaced == nil || *r.Resources.Namespaced,
	}
	if r.Name.As != "" {
		if strings.Contains(r.Name.As, "$") {
			return nil, fmt.Errorf("name.as %q of %s: only a literal name is understood here", r.Name.As, series)
		}
		m.name = r.Name.As
	}
	for label, override := range r.Resources.Overrides {
		switch override.Resource {
		case "namespace", "namespaces":
			m.namespaceLabel = label
		case "pod", "pods":
			m.podLabel = label
		}
	}
	text := r.MetricsQuery
	if text == "" {
		text = "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"
	}
	_ = selector // which series exist is Prometheus's to say when it is asked
	parsed, err := template.New(m.name).Delims("<<", ">>").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("metricsQuery of %s: %w", m.name, err)
	}
	m.query = parsed
	return m, nil
}

// promQL fills the rule's template. matchers are PromQL's, such as namespace="a".
func (m *metric) promQL(matchers []string, groupBy string) (string, error) {
	var text bytes.Buffer
	err := m.query.Execute(&text, map[string]string{
		"Series": m.series, "LabelMatchers": strings.Join(matchers, ","), "GroupBy": groupBy,
	})
	return text.String(), err
}

func equals(label, value string) string { return fmt.Sprintf("%s=%q", label, value) }

// oneOf matches exactly the given values; Pods' names hold nothing that a regular expression would read otherwise
// but the dot.
func oneOf(label string, values []string) string {
	quoted := make([]string, len(values))
	for i, value := range values {
		quoted[i] = strings.ReplaceAll(value, ".", `\.`)
	}
	slices.Sort(quoted)
	return fmt.Sprintf("%s=~%q", label, strings.Join(quoted, "|"))
}

// selectorMatchers turns the selector of an HPA's metric into PromQL's matchers.
func selectorMatchers(selector labels.Selector) ([]string, error) {
	requirements, _ := selector.Requirements()
	var matchers []string
	for _, requirement := range requirements {
		values := requirement.Values().List()
		switch operator := requirement.Operator(); operator {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if len(values) == 1 {
				matchers = append(matchers, equals(requirement.Key(), values[0]))
			} else {
				matchers = append(matchers, oneOf(requirement.Key(), values))
			}
		case selection.NotEquals, selection.NotIn:
			matchers = append(matchers, strings.Replace(oneOf(requirement.Key(), values), "=~", "!~", 1))
		case selection.Exists:
			matchers = append(matchers, requirement.Key()+`!=""`)
		case selection.DoesNotExist:
			matchers = append(matchers, requirement.Key()+`=""`)
		default:
			return nil, fmt.Errorf("operator %s is not understood in a metric's selector", operator)
		}
	}
	return matchers, nil
}
