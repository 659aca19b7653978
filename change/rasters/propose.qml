<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
  <renderer-v2 type="singleSymbol" enableorderby="0">
    <symbols>
      <symbol name="0" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">
        <prop k="color" v="255,0,0,40"/><prop k="outline_color" v="255,0,0,255"/><prop k="outline_width" v="0.5"/><prop k="style" v="solid"/>
      </layer></symbol>
    </symbols>
  </renderer-v2>
</qgis>
