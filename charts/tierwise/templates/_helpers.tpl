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
