{{/* Name of everything in this release. */}}
{{- define "tandem.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* What a component's pods are chosen by: (list . "server"). */}}
{{- define "tandem.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{/* As in docker-compose.yml: nothing of a container can be written but its volumes. */}}
{{- define "tandem.contained" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* How many servers there may be. */}}
{{- define "tandem.most" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.max }}{{ else }}{{ .Values.replicas }}{{ end }}
{{- end }}

{{- define "tandem.resources" -}}
{{- $amounts := dict "cpu" .Values.resources.cpu "memory" .Values.resources.memory }}
{{- if .Values.gpu.enabled }}{{ $_ := set $amounts "nvidia.com/gpu" .Values.gpu.count }}{{ end }}
requests: {{ toJson $amounts }}
limits: {{ toJson $amounts }}
{{- end }}

{{/* Helm reads numbers of a file as floats, and would write 2000000 as 2e+06. */}}
{{- define "tandem.number" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}
