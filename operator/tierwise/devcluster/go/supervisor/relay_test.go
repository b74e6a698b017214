package supervisor

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestReadyAddressesOfThePort(t *testing.T) {
	yes, no := true, false
	http, other := "http", "other"
	port, otherPort := int32(8000), int32(9000)
	slice := &discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Name: &http, Port: &port}, {Name: &other, Port: &otherPort}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.1.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.244.1.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.244.1.3"}},
		},
	}
	got := readyAddresses([]*discoveryv1.EndpointSlice{slice}, "http")
	if want := []string{"10.244.1.1:8000", "10.244.1.3:8000"}; !slices.Equal(got, want) {
		t.Errorf("%v, wanted %v", got, want)
	}
}

func TestServicePortsByNumberOrName(t *testing.T) {
	service := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	for _, port := range []string{"80", "http"} {
		if name, err := servicePortName(service, port); err != nil || name != "http" {
			t.Errorf("%s: %s %v", port, name, err)
		}
	}
	if _, err := servicePortName(service, "81"); err == nil {
		t.Error("a port that the Service does not have")
	}
}
