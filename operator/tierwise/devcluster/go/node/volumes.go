package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/volume/util"
)

const defaultTokenSeconds = 3607

// volumes is the folder of a Pod's volumes and what was last written there.
type volumes struct {
	folder  string
	sources *sources
	client  kubernetes.Interface
	written map[string][sha256.Size]byte
	tokens  map[string]token
}

// token is a service account's, with the time at which it is to be replaced.
type token struct {
	text    string
	renewal time.Time
}

func newVolumes(folder string, from *sources, client kubernetes.Interface) *volumes {
	return &volumes{
		folder: folder, sources: from, client: client,
		written: map[string][sha256.Size]byte{}, tokens: map[string]token{},
	}
}

func (v *volumes) path(name string) string { return filepath.Join(v.folder, name) }

// sync writes every volume of the Pod whose content has changed since the last call: all at once by an exchange of the
// ..data link, as the kubelet does it.
func (v *volumes) sync(ctx context.Context, pod *corev1.Pod, podIP string) error {
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		if err := v.syncOne(ctx, pod, volume, podIP); err != nil {
			return fmt.Errorf("volume %s: %w", volume.Name, err)
		}
	}
	return nil
}

func (v *volumes) syncOne(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, podIP string) error {
	if volume.HostPath != nil {
		return nil
	}
	folder := v.path(volume.Name)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	var content map[string]util.FileProjection
	var err error
	switch {
	case volume.EmptyDir != nil:
		return nil
	case volume.ConfigMap != nil:
		source := volume.ConfigMap
		content, err = v.configMap(pod.Namespace, source.Name, source.Items, source.DefaultMode, source.Optional)
	case volume.Secret != nil:
		source := volume.Secret
		content, err = v.secret(pod.Namespace, source.SecretName, source.Items, source.DefaultMode, source.Optional)
	case volume.DownwardAPI != nil:
		content, err = v.downward(pod, volume.DownwardAPI.Items, volume.DownwardAPI.DefaultMode, podIP)
	case volume.Projected != nil:
		content, err = v.projected(ctx, pod, volume, podIP)
	default:
		return fmt.Errorf("this node knows emptyDir, configMap, secret, downwardAPI, projected and hostPath only")
	}
	if err != nil {
		return err
	}
	sum := checksum(content)
	if earlier, found := v.written[volume.Name]; found && earlier == sum {
		return nil
	}
	writer, err := util.NewAtomicWriter(folder, pod.Namespace+"/"+pod.Name)
	if err != nil {
		return err
	}
	if err := writer.Write(content, nil); err != nil {
		return err
	}
	v.written[volume.Name] = sum
	return nil
}

func (v *volumes) configMap(
	namespace, name string, items []corev1.KeyToPath, mode *int32, optional *bool,
) (map[string]util.FileProjection, error) {
	object, err := v.sources.configMaps.ConfigMaps(namespace).Get(name)
	if err != nil {
		return nil, unlessOptional(err, optional)
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	maps.Copy(data, object.BinaryData)
	return project("ConfigMap "+name, data, items, mode, optional)
}

func (v *volumes) secret(
	namespace, name string, items []corev1.KeyToPath, mode *int32, optional *bool,
) (map[string]util.FileProjection, error) {
	object, err := v.sources.secrets.Secrets(namespace).Get(name)
	if err != nil {
		return nil, unlessOptional(err, optional)
	}
	return project("Secret "+name, object.Data, items, mode, optional)
}

// project names the files: all keys, or the chosen ones at chosen paths.
func project(
	from string, data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional *bool,
) (map[string]util.FileProjection, error) {
	content := map[string]util.FileProjection{}
	if len(items) == 0 {
		for key, value := range data {
			content[key] = util.FileProjection{Data: value, Mode: modeOr(mode, nil)}
		}
		return content, nil
	}
	for _, item := range items {
		value, present := data[item.Key]
		if !present {
			if optional != nil && *optional {
				continue
			}
			return nil, fmt.Errorf("%s has no key %s", from, item.Key)
		}
		content[item.Path] = util.FileProjection{Data: value, Mode: modeOr(mode, item.Mode)}
	}
	return content, nil
}

func modeOr(mode, own *int32) int32 {
	switch {
	case own != nil:
		return *own
	case mode != nil:
		return *mode
	default:
		return 0o644
	}
}

func (v *volumes) downward(
	pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32, podIP string,
) (map[string]util.FileProjection, error) {
	content := map[string]util.FileProjection{}
	for _, item := range items {
		var value string
		var err error
		if item.FieldRef != nil {
			value, err = v.sources.field(pod, item.FieldRef.FieldPath, podIP)
		} else if item.ResourceFieldRef != nil {
			value, err = v.sources.resource(pod, "", item.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		content[item.Path] = util.FileProjection{Data: []byte(value), Mode: modeOr(mode, item.Mode)}
	}
	return content, nil
}

func (v *volumes) projected(
	ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, podIP string,
) (map[string]util.FileProjection, error) {
	all := map[string]util.FileProjection{}
	mode := volume.Projected.DefaultMode
	for i, source := range volume.Projected.Sources {
		var part map[string]util.FileProjection
		var err error
		switch {
		case source.ConfigMap != nil:
			part, err = v.configMap(pod.Namespace, source.ConfigMap.Name, source.ConfigMap.Items, mode, source.ConfigMap.Optional)
		case source.Secret != nil:
			part, err = v.secret(pod.Namespace, source.Secret.Name, source.Secret.Items, mode, source.Secret.Optional)
		case source.DownwardAPI != nil:
			part, err = v.downward(pod, source.DownwardAPI.Items, mode, podIP)
		case source.ServiceAccountToken != nil:
			var text string
			text, err = v.token(ctx, pod, fmt.Sprintf("%s/%d", volume.Name, i), source.ServiceAccountToken)
			part = map[string]util.FileProjection{source.ServiceAccountToken.Path: {Data: []byte(text), Mode: modeOr(mode, nil)}}
		default:
			return nil, fmt.Errorf("this node does not know such a projected source: %v", source)
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, part)
	}
	return all, nil
}

// token asks the API server for one that is bound to the Pod, and for a new one after four fifths of its life.
func (v *volumes) token(
	ctx context.Context, pod *corev1.Pod, key string, wanted *corev1.ServiceAccountTokenProjection,
) (string, error) {
	if known, found := v.tokens[key]; found && time.Now().Before(known.renewal) {
		return known.text, nil
	}
	seconds := int64(defaultTokenSeconds)
	if wanted.ExpirationSeconds != nil {
		seconds = *wanted.ExpirationSeconds
	}
	ask := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if wanted.Audience != "" {
		ask.Spec.Audiences = []string{wanted.Audience}
	}
	accounts := v.client.CoreV1().ServiceAccounts(pod.Namespace)
	given, err := accounts.CreateToken(ctx, pod.Spec.ServiceAccountName, ask, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	v.tokens[key] = token{given.Status.Token, time.Now().Add(time.Duration(seconds) * time.Second * 4 / 5)}
	return given.Status.Token, nil
}

func checksum(content map[string]util.FileProjection) [sha256.Size]byte {
	hash := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(content)) {
		file := content[name]
		for _, part := range [][]byte{[]byte(name), file.Data} {
			_ = binary.Write(hash, binary.LittleEndian, int64(len(part)))
			_, _ = hash.Write(part)
		}
		_ = binary.Write(hash, binary.LittleEndian, file.Mode)
	}
	return [sha256.Size]byte(hash.Sum(nil))
}

// mountsOf is where a container sees the Pod's volumes.
func (v *volumes) mountsOf(pod *corev1.Pod, container *corev1.Container, expand func(string) string) ([]mount, error) {
	var mounts []mount
	for _, wanted := range container.VolumeMounts {
		index := slices.IndexFunc(pod.Spec.Volumes, func(volume corev1.Volume) bool { return volume.Name == wanted.Name })
		if index < 0 {
			return nil, fmt.Errorf("no volume %s", wanted.Name)
		}
		volume := &pod.Spec.Volumes[index]
		source := v.path(wanted.Name)
		if volume.HostPath != nil {
			source = volume.HostPath.Path
		}
		sub := wanted.SubPath
		if wanted.SubPathExpr != "" {
			sub = expand(wanted.SubPathExpr)
		}
		if sub != "" {
			if !filepath.IsLocal(sub) {
				return nil, fmt.Errorf("subPath %s leads out of the volume", sub)
			}
			source = filepath.Join(source, sub)
			if volume.EmptyDir != nil {
				if err := os.MkdirAll(source, 0o777); err != nil {
					return nil, err
				}
			}
			// The file behind the links: like the kubelet, a subPath does not follow later changes.
			resolved, err := filepath.EvalSymlinks(source)
			if err != nil {
				return nil, err
			}
			source = resolved
		}
		generated := volume.ConfigMap != nil || volume.Secret != nil || volume.DownwardAPI != nil || volume.Projected != nil
		mounts = append(mounts, mount{source: source, target: wanted.MountPath, readOnly: wanted.ReadOnly || generated})
	}
	return mounts, nil
}
