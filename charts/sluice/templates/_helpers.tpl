{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "sluice.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sluice.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Name of what is not in a namespace: two releases of one name in two namespaces must not meet. */ -}}
{{- define "sluice.clusterName" -}}
{{- /* By a dot, which no namespace holds: a-b/sluice and a/b-sluice are two. */ -}}
{{- printf "%s.%s" .Release.Namespace (include "sluice.fullname" .) -}}
{{- end -}}

{{- define "sluice.serviceAccountName" -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "sluice.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "sluice.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "sluice.labels" -}}
{{ include "sluice.selectorLabels" . }}
{{ include "sluice.commonLabels" . }}
{{- end -}}

{{- define "sluice.natsName" -}}
{{- printf "%s-nats" (include "sluice.fullname" .) -}}
{{- end -}}

{{- define "sluice.natsSelectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: nats
{{- end -}}

{{- define "sluice.natsLabels" -}}
{{ include "sluice.natsSelectorLabels" . }}
{{ include "sluice.commonLabels" . }}
{{- end -}}

{{- /* The servers that hold the streams, separated by commas. */ -}}
{{- define "sluice.natsServers" -}}
{{- if .Values.nats.servers -}}
{{- join "," .Values.nats.servers -}}
{{- else if .Values.natsServer.enabled -}}
{{- printf "nats://%s.%s.svc:4222" (include "sluice.natsName" .) .Release.Namespace -}}
{{- else -}}
{{- fail "\n\nNo NATS: set nats.servers to your servers with JetStream, for example\n  --set 'nats.servers={nats://nats.nats.svc:4222}'\nor let the chart start one server for evaluation:\n  --set natsServer.enabled=true\n" -}}
{{- end -}}
{{- end -}}

{{- /* How the operator reaches NATS: arguments of `run` and of `check`. */ -}}
{{- define "sluice.natsArgs" -}}
- --nats={{ include "sluice.natsServers" . }}
{{- with .Values.nats }}
{{- if .credentialsSecret.name }}
- --nats-credentials=/var/run/sluice/credentials/{{ .credentialsSecret.key }}
{{- end }}
{{- if .caSecret.name }}
- --nats-ca=/var/run/sluice/ca/{{ .caSecret.key }}
{{- end }}
{{- if .clientCertSecret.name }}
- --nats-client-cert=/var/run/sluice/client/tls.crt
- --nats-client-key=/var/run/sluice/client/tls.key
{{- end }}
{{- with .jetStreamDomain }}
- --jetstream-domain={{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sluice.natsVolumeMounts" -}}
{{- with .Values.nats }}
{{- if .credentialsSecret.name }}
- {name: nats-credentials, mountPath: /var/run/sluice/credentials, readOnly: true}
{{- end }}
{{- if .caSecret.name }}
- {name: nats-ca, mountPath: /var/run/sluice/ca, readOnly: true}
{{- end }}
{{- if .clientCertSecret.name }}
- {name: nats-client, mountPath: /var/run/sluice/client, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sluice.natsVolumes" -}}
{{- with .Values.nats }}
{{- if .credentialsSecret.name }}
- name: nats-credentials
  secret: {secretName: {{ .credentialsSecret.name }}, defaultMode: 0440}
{{- end }}
{{- if .caSecret.name }}
- name: nats-ca
  secret: {secretName: {{ .caSecret.name }}, defaultMode: 0440}
{{- end }}
{{- if .clientCertSecret.name }}
- name: nats-client
  secret: {secretName: {{ .clientCertSecret.name }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The strictest of the Pod Security Standards, for every pod of the chart. */ -}}
{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "sluice.placement" -}}
{{- with .imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
