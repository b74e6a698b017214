{{- define "tierwise.name" -}}
{{- default "tierwise" .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tierwise.labels" -}}
app.kubernetes.io/part-of: tierwise
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* Labels by which Deployments, Services and Prometheus know a component; they never change. */ -}}
{{- define "tierwise.selector" -}}
app.kubernetes.io/name: {{ include "tierwise.name" .root }}-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
tierwise.dev/component: {{ .component }}
{{- end -}}

{{- /* A quantity of memory in bytes. */ -}}
{{- define "tierwise.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factors := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "memory %q: write it as in 512Mi, 2Gi or 2G" $text) -}}
{{- end -}}
{{- mulf (float64 $number) (get $factors $unit | float64) | int64 -}}
{{- end -}}
