{{/* New servers take minutes to load and old ones have clients: up in steps, down slowly. */}}
{{- define "basaran-ops.scalingBehavior" -}}
{{- with .Values.autoscaling -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - type: Pods
      value: {{ .scaleUp.pods }}
      periodSeconds: {{ .scaleUp.periodSeconds }}
scaleDown:
  stabilizationWindowSeconds: {{ .scaleDown.stabilizationSeconds }}
  policies:
    - type: Pods
      value: {{ .scaleDown.pods }}
      periodSeconds: {{ .scaleDown.periodSeconds }}
{{- end -}}
{{- end }}

{{/* Running sequences of a pod at which another is wanted, in thousandths: both kinds of autoscaler read it. */}}
{{- define "basaran-ops.targetRunningMilli" -}}
{{- mulf 1000 .Values.autoscaling.targetSlotUsage (include "basaran-ops.slots" . | float64) | floor | int64 -}}
{{- end }}

{{/* A first start, with nothing to see until it is over, is no failure of Prometheus. */}}
{{- define "basaran-ops.fallbackAfter" -}}
{{- with .Values.autoscaling.keda -}}
{{- $looks := divf (include "basaran-ops.progressSeconds" $) .pollingInterval | ceil | int64 -}}
{{- include "basaran-ops.text" (.fallbackAfter | default $looks) -}}
{{- end -}}
{{- end }}

{{/* This release's pods alone, by the labels that Prometheus adds. */}}
{{- define "basaran-ops.podSeries" -}}
{namespace="{{ .Release.Namespace }}",pod=~"{{ include "basaran-ops.fullname" . }}-[a-z0-9]+-[a-z0-9]{5}"}
{{- end }}
