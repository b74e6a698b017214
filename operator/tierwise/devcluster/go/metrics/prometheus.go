package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const queryTimeout = 3 * time.Second

// prometheus asks one server; it holds no state, so the server may come and go.
type prometheus struct {
	address string
	client  *http.Client
}

// sample is one element of an instant vector.
type sample struct {
	labels map[string]string
	value  float64
	time   time.Time
}

func newPrometheus(address string) *prometheus {
	return &prometheus{address: strings.TrimRight(address, "/"), client: &http.Client{Timeout: queryTimeout}}
}

// query asks for an instant vector. Values that are no numbers are left out: unknown is not zero.
func (p *prometheus) query(ctx context.Context, promQL string) ([]sample, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	form := url.Values{"query": {promQL}}.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.address+"/api/v1/query", strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return nil, err
	}
	return parseVector(body)
}

func parseVector(body []byte) ([]sample, error) {
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   struct {
			Type   string `json:"resultType"`
			Result []struct {
				Metric map[string]string `json:"metric"`
				Value  [2]any            `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}{}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("prometheus: %w: %.200s", err, body)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("prometheus: %s", answer.Error)
	}
	if answer.Data.Type != "vector" {
		return nil, fmt.Errorf("prometheus answered with a %s where a vector is wanted", answer.Data.Type)
	}
	var samples []sample
	for _, element := range answer.Data.Result {
		seconds, isNumber := element.Value[0].(float64)
		text, isText := element.Value[1].(string)
		if !isNumber || !isText {
			return nil, fmt.Errorf("prometheus: not a sample: %v", element.Value)
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		if math.IsNaN(value) || math.IsInf(value, 0) {
			continue
		}
		samples = append(samples, sample{element.Metric, value, time.UnixMilli(int64(seconds * 1000))})
	}
	return samples, nil
}
