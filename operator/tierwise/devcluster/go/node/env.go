package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corelisters "k8s.io/client-go/listers/core/v1"
	resourcehelper "k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// sources is where values that a Pod refers to come from.
type sources struct {
	configMaps  corelisters.ConfigMapLister
	secrets     corelisters.SecretLister
	allocatable corev1.ResourceList
	nodeName    string
	hostIP      string
	apiHost     string
	apiPort     string
}

// environment resolves a container's variables as the kubelet does: envFrom, then env in order, each of which may
// refer to earlier ones as $(NAME).
func (s *sources) environment(pod *corev1.Pod, container *corev1.Container, podIP string) (map[string]string, error) {
	result := map[string]string{
		"KUBERNETES_SERVICE_HOST":       s.apiHost,
		"KUBERNETES_SERVICE_PORT":       s.apiPort,
		"KUBERNETES_SERVICE_PORT_HTTPS": s.apiPort,
		"HOSTNAME":                      pod.Name,
		"HOME":                          "/root",
	}
	for _, from := range container.EnvFrom {
		values, err := s.envFrom(pod.Namespace, &from)
		if err != nil {
			return nil, err
		}
		for name, value := range values {
			result[from.Prefix+name] = value
		}
	}
	mapping := expansion.MappingFuncFor(result)
	for _, variable := range container.Env {
		if variable.ValueFrom == nil {
			result[variable.Name] = expansion.Expand(variable.Value, mapping)
			continue
		}
		value, present, err := s.valueFrom(pod, container, variable.ValueFrom, podIP)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", variable.Name, err)
		}
		if present {
			result[variable.Name] = value
		}
	}
	return result, nil
}

func (s *sources) envFrom(namespace string, from *corev1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		object, err := s.configMaps.ConfigMaps(namespace).Get(from.ConfigMapRef.Name)
		if err != nil {
			return nil, unlessOptional(err, from.ConfigMapRef.Optional)
		}
		return object.Data, nil
	case from.SecretRef != nil:
		object, err := s.secrets.Secrets(namespace).Get(from.SecretRef.Name)
		if err != nil {
			return nil, unlessOptional(err, from.SecretRef.Optional)
		}
		return stringValues(object.Data), nil
	default:
		return nil, nil
	}
}

func (s *sources) valueFrom(
	pod *corev1.Pod, container *corev1.Container, from *corev1.EnvVarSource, podIP string,
) (value string, present bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = s.field(pod, from.FieldRef.FieldPath, podIP)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err = s.resource(pod, container.Name, from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		reference := from.ConfigMapKeyRef
		object, err := s.configMaps.ConfigMaps(pod.Namespace).Get(reference.Name)
		if err != nil {
			return "", false, unlessOptional(err, reference.Optional)
		}
		value, present = object.Data[reference.Key]
		return value, present, missingKey("ConfigMap", reference.Name, reference.Key, present, reference.Optional)
	case from.SecretKeyRef != nil:
		reference := from.SecretKeyRef
		object, err := s.secrets.Secrets(pod.Namespace).Get(reference.Name)
		if err != nil {
			return "", false, unlessOptional(err, reference.Optional)
		}
		data, present := object.Data[reference.Key]
		return string(data), present, missingKey("Secret", reference.Name, reference.Key, present, reference.Optional)
	default:
		return "", false, fmt.Errorf("this node does not know such a source: %v", from)
	}
}

func (s *sources) field(pod *corev1.Pod, path, podIP string) (string, error) {
	switch path {
	case "spec.nodeName":
		return s.nodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return s.hostIP, nil
	case "status.podIP", "status.podIPs":
		return podIP, nil
	default:
		return fieldpath.ExtractFieldPathAsString(pod, path)
	}
}

func (s *sources) resource(pod *corev1.Pod, container string, selector *corev1.ResourceFieldSelector) (string, error) {
	if selector.ContainerName != "" {
		container = selector.ContainerName
	}
	return resourcehelper.ExtractResourceValueByContainerNameAndNodeAllocatable(selector, pod, container, s.allocatable)
}

func unlessOptional(err error, optional *bool) error {
	if apierrors.IsNotFound(err) && optional != nil && *optional {
		return nil
	}
	return err
}

func missingKey(kind, name, key string, present bool, optional *bool) error {
	if present || (optional != nil && *optional) {
		return nil
	}
	return fmt.Errorf("%s %s has no key %s", kind, name, key)
}

func stringValues(data map[string][]byte) map[string]string {
	values := make(map[string]string, len(data))
	for name, value := range data {
		values[name] = string(value)
	}
	return values
}

// commandLine joins what the image and the container say, with $(NAME) replaced.
func commandLine(entry *image, container *corev1.Container, environment map[string]string) []string {
	mapping := expansion.MappingFuncFor(environment)
	words := slices.Clone(entry.Entrypoint)
	if len(container.Command) > 0 {
		words = nil
		for _, word := range container.Command {
			words = append(words, expansion.Expand(word, mapping))
		}
	}
	for _, word := range container.Args {
		words = append(words, expansion.Expand(word, mapping))
	}
	return words
}

// processEnvironment adds what the image says; the container's own words win. PATH gets the image's folders in front.
func processEnvironment(entry *image, environment map[string]string) []string {
	all := maps.Clone(entry.Env)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, environment)
	path := all["PATH"]
	if path == "" {
		path = defaultPath
	}
	all["PATH"] = strings.Join(append(slices.Clone(entry.Path), path), ":")
	words := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		words = append(words, name+"="+all[name])
	}
	return words
}
